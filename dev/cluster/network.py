"""The addresses of a real node: one private /16 for each cluster, so that several run side by side.

    10.N.0.1 host ── veth ── 10.N.0.2 node ── bridge 10.N.64.1/24 ── pods
                                        10.N.128.0/20 Services

Everything but the host's end of the veth lives in the node's own network namespace. The host's routes go
through the veth, so they vanish with it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dev.cluster.errors import ClusterError
from dev.cluster.paths import state_home

_FIRST, _LAST = 96, 223  # of 10.N: away from the low numbers that offices and clouds like


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster, all derived from one number."""

    number: int

    @property
    def host(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def node(self) -> str:
        return f"10.{self.number}.0.2"

    @property
    def bridge(self) -> str:
        """The node's address among its pods; its DNS server listens here."""
        return f"10.{self.number}.64.1"

    @property
    def pod_cidr(self) -> str:
        return f"10.{self.number}.64.0/24"

    @property
    def service_cidr(self) -> str:
        return f"10.{self.number}.128.0/20"

    @property
    def first_service(self) -> str:
        return f"10.{self.number}.128.1"


@contextmanager
def choosing() -> Iterator[None]:
    """Held from choosing a number until the veth claims it: two clusters that start together differ."""
    state_home().mkdir(parents=True, exist_ok=True)
    with (state_home() / ".network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def choose() -> Network:
    """A network that no route of this machine touches. Call it within `choosing()`."""
    answer = subprocess.run(
        ["ip", "-j", "-4", "route", "show", "table", "all"], capture_output=True, check=True
    )
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in json.loads(answer.stdout)
        if route["dst"] != "default"
    ]
    for number in range(_FIRST, _LAST + 1):
        wanted = ipaddress.ip_network(f"10.{number}.0.0/16")
        if not any(wanted.overlaps(network) for network in taken):
            return Network(number)
    raise ClusterError(f"no network from 10.{_FIRST}.0.0/16 to 10.{_LAST}.0.0/16 is free; see `ip route`")
