"""A cluster to load, and what each process of it costs: fake GPU nodes by the thousand, no real node.

API server, scheduler, controllers, etcd and kwok share the machine with the operator and the generator, so a
figure of the operator means little without the share of the CPU that each of them took.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from dev.cluster import lifecycle
from dev.cluster.control_plane import Fakes
from dev.cluster.description import Cluster
from dev.cluster.nodes import NodePool, cycle, expand
from dev.cluster.processes import ProcessTable
from kubernetes import client, config

REPOSITORY = Path(__file__).parents[2]
FOR_INSPECTION = NodePool("cpu", "", 1, 0, 0, "0.0", "64", "256Gi")
"""Inspect pods take no GPU node."""
POD_ADDRESSES = "198.18.0.0/16"
"""RFC 2544's benchmarking range, not loopback: Endpoints refuse loopback addresses, and the controllers would
spend the API server's time on trying again."""
FAKES = Fakes(pod_cidr=POD_ADDRESSES, lease_seconds=400, grace_seconds=300)
MIB = 1 << 20


@contextmanager
def bench_cluster(name: str, nodes: int) -> Iterator[Cluster]:
    """A cluster of `nodes` fake GPU nodes of the demo's four kinds, with the CRD; gone afterwards."""
    lifecycle.down(name)
    with _local(POD_ADDRESSES):
        yield from _up(name, nodes)


def _up(name: str, nodes: int) -> Iterator[Cluster]:
    try:
        cluster = lifecycle.up(
            lifecycle.Wanted(name, nodes=[*cycle(nodes), *expand([FOR_INSPECTION])], fakes=FAKES)
        )
        extensions = client.ApiextensionsV1Api(api_client(cluster))
        for path in sorted((REPOSITORY / "crds").glob("*.yaml")):
            extensions.create_custom_resource_definition(yaml.safe_load(path.read_text()))
        yield cluster
    finally:
        lifecycle.down(name)


@contextmanager
def _local(addresses: str) -> Iterator[None]:
    """Makes this machine the owner of the addresses, where it may: nothing listens, so requests to workers
    are refused at once and not lost on the way."""
    route = ["ip", "route", "replace", "local", addresses, "dev", "lo"]
    allowed = sys.platform == "linux" and os.geteuid() == 0
    if allowed:
        subprocess.run(route, check=True)
    try:
        yield
    finally:
        if allowed:
            subprocess.run([*route[:2], "del", *route[3:]], check=True)


def api_client(cluster: Cluster) -> client.ApiClient:
    settings = client.Configuration()
    config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)
    settings.connection_pool_maxsize = 32
    settings.retries = False
    return client.ApiClient(settings)


class Costs:
    """CPU and memory of the named processes since the last `restart`."""

    def __init__(self, cluster: Cluster) -> None:
        self._processes = {
            record.name.removeprefix("kube-"): process
            for record in ProcessTable(cluster.paths).recorded()
            if (process := record.find())
        } | {"generator": psutil.Process()}
        self.restart()

    def follow(self, name: str, pid: int) -> None:
        self._processes[name] = psutil.Process(pid)
        self.restart()

    def forget(self, name: str) -> None:
        """The process has ended."""
        del self._processes[name]

    def restart(self) -> None:
        self._since, self._machine = time.monotonic(), _busy_seconds()
        self._before = {name: _seconds(process) for name, process in self._processes.items()}

    def seconds(self, name: str) -> float:
        """CPU seconds of one process."""
        return _seconds(self._processes[name]) - self._before[name]

    def all_seconds(self) -> dict[str, float]:
        """CPU seconds of each process; `others` is everything else on the machine."""
        own = {name: self.seconds(name) for name in self._processes}
        return own | {"others": max(0.0, _busy_seconds() - self._machine - sum(own.values()))}

    def cores(self) -> dict[str, float]:
        """Cores that each kept busy in the mean."""
        elapsed = time.monotonic() - self._since
        return {name: round(seconds / elapsed, 2) for name, seconds in self.all_seconds().items()}

    def milliseconds_each(self, number: int, idle: Mapping[str, float]) -> dict[str, float]:
        """CPU for each of `number` things that were done, without what the processes take when nothing is:
        `idle`, in cores."""
        elapsed = time.monotonic() - self._since
        own = {name: self.seconds(name) - elapsed * idle.get(name, 0.0) for name in self._processes}
        return {name: round(1000 * seconds / number, 1) for name, seconds in own.items()}

    def resident_mib(self, name: str) -> int:
        return int(self._processes[name].memory_info().rss / MIB)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


WRITE_VERBS = {"POST", "PUT", "PATCH", "APPLY", "DELETE"}
_SAMPLE = re.compile(r"apiserver_request_total\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def counted_writes(api: client.ApiClient) -> dict[str, int]:
    """Writes as the API server counts them, of all clients: `resource[/subresource] verb` → requests."""
    found: dict[str, int] = {}
    for line in _text(api, "/metrics").splitlines():
        if not (matched := _SAMPLE.fullmatch(line)):
            continue
        labels = dict(_LABEL.findall(matched[1]))
        if labels["verb"] in WRITE_VERBS:
            key = "/".join(part for part in (labels["resource"], labels["subresource"]) if part)
            key = f"{key} {labels['verb'].lower()}"
            found[key] = found.get(key, 0) + int(float(matched[2]))
    return found


def since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """What was added, without what stayed."""
    return {key: more for key, value in sorted(now.items()) if (more := value - before.get(key, 0))}


def _text(api: client.ApiClient, path: str) -> str:
    answer: Any = api.call_api("GET", api.configuration.host + path)
    answer.read()
    return str(answer.data.decode())
