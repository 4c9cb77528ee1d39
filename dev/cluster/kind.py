"""The same cluster by kind, where a Docker engine answers: for machines that are not Linux, or without root.

Verified so far: kind builds from the pinned module, and its command lines and configuration file are accepted
by it. Not verified: a cluster made by it, as no engine was at hand. The node is kind's; fake nodes are kwok's
as elsewhere.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import yaml

from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from dev.cluster.errors import ClusterError
from dev.cluster.paths import ClusterPaths


def engine_answers() -> bool:
    """Whether a Docker engine can be used."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def node_name(name: str) -> str:
    """What kind calls the node of a cluster."""
    return f"{_name(name)}-control-plane"


def create(cluster: Cluster) -> Cluster:
    """Create the cluster and wait until its node is ready. Raises ClusterError with what kind said."""
    configuration = cluster.paths.root / "kind.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(pod_groups=cluster.pod_groups)))
    _kind(
        "create",
        "cluster",
        f"--name={_name(cluster.name)}",
        f"--config={configuration}",
        f"--kubeconfig={cluster.kubeconfig}",
        "--wait=180s",
    )
    answer = subprocess.run(["docker", "network", "inspect", "kind"], capture_output=True, check=True)
    settings = json.loads(answer.stdout)[0]["IPAM"]["Config"]
    gateways = [entry["Gateway"] for entry in settings if ":" not in entry.get("Gateway", ":")]
    return replace(cluster, host_address=gateways[0])


def delete(paths: ClusterPaths) -> None:
    """Delete the cluster; kind says nothing about one that is not there."""
    _kind("delete", "cluster", f"--name={_name(paths.name)}", f"--kubeconfig={paths.kubeconfig}")


def load_archive(cluster: Cluster, archive: Path) -> None:
    """Put the image of an OCI archive into the cluster's node."""
    _kind("load", "image-archive", str(archive), f"--name={_name(cluster.name)}")


def _name(name: str) -> str:
    return f"plimsoll-{name}"


def _configuration(*, pod_groups: bool) -> dict[str, object]:
    content: dict[str, object] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": "control-plane"}],
    }
    if pod_groups:
        content["featureGates"] = {"GenericWorkload": True}
        content["runtimeConfig"] = {"scheduling.k8s.io/v1beta1": "true"}
    return content


def _kind(*arguments: str) -> None:
    answer = subprocess.run([str(binary("kind")), *arguments], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise ClusterError(f"kind {' '.join(arguments)}: {answer.stderr.strip()}")
