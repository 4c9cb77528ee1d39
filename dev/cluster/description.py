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
    provider: Provider = "process"
    pod_groups: bool = False
    node: str | None = None  # the real node's name
    host_address: str = "127.0.0.1"  # of this machine, as pods of the real node reach it
    network: Network | None = None  # of the real node of provider `process`
    runtime_root: str = ""  # containerd's root folder, likewise
    ready: bool = False

    @property
    def paths(self) -> ClusterPaths:
        return ClusterPaths(self.name)

    @property
    def kubeconfig(self) -> Path:
        return self.paths.kubeconfig

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
