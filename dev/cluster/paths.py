"""Where clusters keep their state and where built things are cached.

State lives apart from caches: `down` removes a cluster's state wholly, the caches (programs, container
images) stay for the next `up`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.errors import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]

# The name becomes a node name, a cgroup name and a folder.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def state_home() -> Path:
    """The folder that holds one folder for each cluster."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "plimsoll"


def cache_home() -> Path:
    """The folder of everything that can be made again: programs, layers, container images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "plimsoll"


@dataclass(frozen=True)
class ClusterPaths:
    """The files of one cluster, all under one folder."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ClusterError(
                f"cluster name {self.name!r}: expected at most 40 lower-case letters, digits and dashes, "
                "beginning and ending with a letter or digit"
            )

    @property
    def root(self) -> Path:
        return state_home() / self.name

    @property
    def tag(self) -> str:
        """Names what must be unique on the whole machine (network link, cgroup), whatever XDG_STATE_HOME
        is.
        """
        return "plimsoll" + hashlib.sha256(str(self.root).encode()).hexdigest()[:6]

    @property
    def lock(self) -> Path:
        """Outside the root: it must outlive the root's removal."""
        return state_home() / f".{self.name}.lock"

    @property
    def description(self) -> Path:
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pids(self) -> Path:
        return self.root / "pids"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def node(self) -> Path:
        """Everything of the real node: kubelet, container runtime state, network configuration."""
        return self.root / "node"


def cluster_names() -> list[str]:
    """The names of all clusters recorded on this machine, running or not."""
    if not state_home().is_dir():
        return []
    return sorted(path.parent.name for path in state_home().glob("*/cluster.json"))
