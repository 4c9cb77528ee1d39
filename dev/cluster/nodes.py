"""Fake GPU nodes: pools in a file become Node objects with the labels that NVIDIA's feature discovery writes.

The label values of the catalogue are those of real nodes where a capture is public (L4, H100) and of
NVIDIA's own documentation otherwise; the H200's memory is the NVML figure of real boards (143771 MiB), as
no label was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.errors import InvalidNodesError
from dev.cluster.paths import REPOSITORY

DEMO = REPOSITORY / "samples" / "nodes" / "demo.yaml"
# GFD's names for compute capabilities, newest first: (major, minor) and above.
_FAMILIES = (
    ((10, 0), "blackwell"),
    ((9, 0), "hopper"),
    ((8, 9), "ada-lovelace"),
    ((8, 0), "ampere"),
    ((7, 5), "turing"),
)


@dataclass(frozen=True)
class NodePool:
    """Nodes of one kind. `memory_mib` is of one GPU; `cpu`, `memory`, `ephemeral_storage`, `pods` are of the
    node.
    """

    name: str
    product: str
    nodes: int
    gpus: int
    memory_mib: int
    compute_capability: str
    cpu: str
    memory: str
    ephemeral_storage: str = "1Ti"
    pods: int = 110


def load_pools(path: Path) -> list[NodePool]:
    """Read pools from YAML: a list under `pools`. Raises InvalidNodesError naming file and field."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidNodesError(f"{path} does not read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("pools"), list):
        raise InvalidNodesError(f"{path}: expected a mapping with a list `pools`; {DEMO} is an example")
    return [_pool(entry, f"{path}: pools[{index}]") for index, entry in enumerate(content["pools"])]


def _pool(entry: object, where: str) -> NodePool:
    if not isinstance(entry, Mapping):
        raise InvalidNodesError(f"{where}: expected a mapping, found {entry!r}")
    types = {_camel(field.name): str(field.type) for field in fields(NodePool)}
    unknown = sorted(set(entry) - set(types))
    if unknown:
        raise InvalidNodesError(f"{where}.{unknown[0]}: no such field; known are {', '.join(types)}")
    for name, value in entry.items():
        expected = int if types[name] == "int" else str
        if not isinstance(value, expected):
            raise InvalidNodesError(
                f"{where}.{name}: expected {expected.__name__}, found {value!r} (quote strings)"
            )
    try:
        return NodePool(**{_snake(name): value for name, value in entry.items()})
    except TypeError as error:
        raise InvalidNodesError(f"{where}: {str(error).replace('NodePool.__init__() ', '')}") from error


def _camel(name: str) -> str:
    """The spelling in YAML, as in the Kubernetes API: memory_mib is memoryMiB."""
    first, *rest = name.split("_")
    return first + "".join("MiB" if part == "mib" else part.capitalize() for part in rest)


def _snake(name: str) -> str:
    return next(field.name for field in fields(NodePool) if _camel(field.name) == name)


def expand(pools: list[NodePool]) -> list[dict[str, Any]]:
    """The Node objects of the pools, `<pool>-0` and up."""
    return [_node(pool, f"{pool.name}-{index}") for pool in pools for index in range(pool.nodes)]


def cycle(count: int) -> list[dict[str, Any]]:
    """`count` nodes that take the demo's pools in turn."""
    pools = load_pools(DEMO)
    return [
        _node(pools[i % len(pools)], f"{pools[i % len(pools)].name}-{i // len(pools)}") for i in range(count)
    ]


def requested(argument: str) -> list[dict[str, Any]]:
    """The nodes that `--nodes` asks for: a number, or a file of pools."""
    return cycle(int(argument)) if argument.isdigit() else expand(load_pools(Path(argument)))


def _node(pool: NodePool, name: str) -> dict[str, Any]:
    resources = {
        "cpu": pool.cpu,
        "memory": pool.memory,
        "ephemeral-storage": pool.ephemeral_storage,
        "pods": str(pool.pods),
    }
    if pool.gpus:
        resources["nvidia.com/gpu"] = str(pool.gpus)
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    labels |= dict(_gpu_labels(pool)) if pool.gpus else {}
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}] if pool.gpus else []
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": taints},
        "status": {"capacity": resources, "allocatable": resources},
    }


def _gpu_labels(pool: NodePool) -> Iterator[tuple[str, str]]:
    major, minor = (int(part) for part in pool.compute_capability.split("."))
    yield "nvidia.com/gpu.present", "true"
    yield "nvidia.com/gpu.product", pool.product
    yield "nvidia.com/gpu.memory", str(pool.memory_mib)
    yield "nvidia.com/gpu.count", str(pool.gpus)
    yield "nvidia.com/gpu.replicas", "1"
    yield "nvidia.com/gpu.sharing-strategy", "none"
    yield "nvidia.com/gpu.compute.major", str(major)
    yield "nvidia.com/gpu.compute.minor", str(minor)
    yield (
        "nvidia.com/gpu.family",
        next((name for least, name in _FAMILIES if (major, minor) >= least), "undefined"),
    )
    yield "nvidia.com/gpu.mode", "compute"
    mig = major >= 9 or (major, minor) == (8, 0)
    yield "nvidia.com/mig.capable", str(mig).lower()
    yield "nvidia.com/mig.strategy", "single"
    yield "nvidia.com/mps.capable", "false"
    yield "nvidia.com/vgpu.present", "false"
