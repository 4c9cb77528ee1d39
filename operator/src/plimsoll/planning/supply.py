"""The GPUs of the cluster by product, and which of them a deployment admits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import Accelerators
from plimsoll.inventory.labels import GPUClass, gpu_classes
from plimsoll.inventory.products import names
from plimsoll.inventory.quantity import at_least
from plimsoll.inventory.views import NodeView
from plimsoll.planning.eligibility import NO_MATCHING_NODES, Obstacle
from plimsoll.planning.words import size


@dataclass(frozen=True, slots=True)
class NodeGPUs:
    """GPUs of one kind on one node."""

    node: NodeView
    gpu: GPUClass


class Supply:
    """All nodes and GPUs of one snapshot, read once for all deployments."""

    def __init__(self, nodes: Iterable[NodeView]) -> None:
        self.nodes = tuple(sorted(nodes, key=lambda node: node.name))
        self.by_name = {node.name: node for node in self.nodes}
        found = [NodeGPUs(node, gpu) for node in self.nodes for gpu in gpu_classes(node)]
        self.usable = tuple(entry for entry in found if entry.gpu.usable)
        self.unusable = tuple(entry for entry in found if not entry.gpu.usable)
        self.gpu_nodes = frozenset(entry.node.name for entry in found)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a deployment may use, and in words why it may not use the rest."""

    gpus: tuple[NodeGPUs, ...]
    refused: tuple[tuple[NodeView, Obstacle], ...]


def admitted_gpus(
    supply: Supply, accelerators: Accelerators, obstacle: Callable[[NodeView], Obstacle | None]
) -> Admitted:
    """The usable GPUs that match `accelerators`, on nodes without an obstacle."""
    taken: list[NodeGPUs] = []
    refused: list[tuple[NodeView, Obstacle]] = []
    wanted = _Wanted(accelerators)
    for entry in supply.usable:
        mismatch = wanted.mismatch(entry.gpu)
        why = Obstacle(NO_MATCHING_NODES, mismatch) if mismatch else obstacle(entry.node)
        if why:
            refused.append((entry.node, why))
        else:
            taken.append(entry)
    return Admitted(tuple(taken), tuple(refused))


class _Wanted:
    def __init__(self, accelerators: Accelerators) -> None:
        self._products = tuple(accelerators.products)
        self._memory_text = accelerators.min_memory
        self._memory = at_least(accelerators.min_memory) if accelerators.min_memory else 0
        self._capability = _capability(accelerators.min_compute_capability)
        self._known: dict[tuple[str, int, tuple[int, int] | None], str] = {}

    def mismatch(self, gpu: GPUClass) -> str:
        """Why the GPU is not what was asked for; empty when it is."""
        key = (gpu.product, gpu.memory_bytes, gpu.compute_capability)
        if key not in self._known:
            self._known[key] = self._compare(gpu)
        return self._known[key]

    def _compare(self, gpu: GPUClass) -> str:
        if self._products and not any(names(wish, gpu.product) for wish in self._products):
            wishes = ", ".join(self._products)
            return f"has {gpu.product}, placement.accelerators.products asks for {wishes}"
        if gpu.memory_bytes < self._memory:
            has = size(gpu.memory_bytes)
            return f"has {gpu.product} with {has}, placement.accelerators.minMemory is {self._memory_text}"
        if self._capability and (gpu.compute_capability is None or gpu.compute_capability < self._capability):
            has = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
            asked = ".".join(map(str, self._capability))
            return (
                f"has {gpu.product} of compute capability {has}, "
                f"placement.accelerators.minComputeCapability is {asked}"
            )
        return ""


def _capability(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    major, minor = text.split(".")
    return int(major), int(minor)
