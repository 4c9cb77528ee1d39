"""What is written down about a cluster before its first process starts, for `down` after any crash."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dev.cluster.errors import ClusterNotFoundError
from dev.cluster.network import Network
from dev.cluster.paths import ClusterPaths, cluster_names

Provider = Literal["process", "kind"]


@dataclass(frozen=True)
class Cluster:
    """A cluster of this machine, running or left behind."""

    name: str
    provider: Provider
    network: Network | None  # of the real node; None without one
    pod_groups: bool
    runtime_root: str = ""  # containerd's root folder, of the real node
    ready: bool = False

    @property
    def paths(self) -> ClusterPaths:
        return ClusterPaths(self.name)

    @property
    def kubeconfig(self) -> Path:
        return self.paths.kubeconfig

    @property
    def node(self) -> str | None:
        """The real node's name, or None without one."""
        if self.network is None:
            return None
        return f"{self.name}-node"

    @property
    def host_address(self) -> str:
        """The address at which pods of the real node reach this machine (and fake pods themselves)."""
        return self.network.host if self.network else "127.0.0.1"

    def save(self) -> None:
        path = self.paths.description
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.rename(path)


def load(name: str) -> Cluster:
    """The recorded cluster of that name. Raises ClusterNotFoundError."""
    path = ClusterPaths(name).description
    if not path.is_file():
        known = ", ".join(cluster_names()) or "none"
        raise ClusterNotFoundError(
            f"no cluster {name!r} is recorded here (recorded: {known}); `up --name {name}` makes one"
        )
    content = json.loads(path.read_text())
    network = content.pop("network")
    return Cluster(**content, network=Network(**network) if network else None)
