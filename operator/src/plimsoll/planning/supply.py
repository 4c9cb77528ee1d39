"""The nodes of the cluster, gathered into pools: what a deployment may use is decided once a pool, not once a
node.

A cluster has thousands of nodes and a handful of kinds. Nodes of a pool have the same taints, readiness and
GPUs, and the same value of every label that some deployment selects by, so the scheduler's filters answer
alike for all of them. Finer pools than needed cost time and change no answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

from plimsoll.api.v1alpha1 import GPUAllocation, GPUSharing, Placement
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.products import names
from plimsoll.inventory.quantity import at_least
from plimsoll.inventory.views import NodeView
from plimsoll.planning.words import size

OS_LABEL = "kubernetes.io/os"


@dataclass(frozen=True, slots=True)
class NodeGPUs:
    """GPUs of one kind on one node."""

    node: NodeView
    gpu: GPUClass


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Nodes that no deployment can tell apart, except by their names and by what is free on them."""

    nodes: tuple[NodeView, ...]
    """By name."""
    gpu: GPUClass | None
    """The kind of GPU that is used; None for pools of deployments on CPU."""
    has_gpus: bool

    @property
    def resource(self) -> str:
        """Extended resource of the GPUs; empty for CPU."""
        return self.gpu.resource_name if self.gpu else ""


class Supply:
    """All nodes and GPUs of one snapshot, read once for all deployments. `selectors`: keys of the labels that
    deployments select nodes by."""

    def __init__(self, nodes: Iterable[NodeView], selectors: Iterable[str] = ()) -> None:
        self.nodes = tuple(sorted(nodes, key=lambda node: node.name))
        self.by_name = {node.name: node for node in self.nodes}
        self._keys = (OS_LABEL, *sorted(set(selectors)))
        gathered = self._gathered(lambda node: id(node.gpus))
        self.gpu_pools = tuple(
            Pool(members, gpu, has_gpus=True) for members in gathered for gpu in members[0].gpus if gpu.usable
        )

    @cached_property
    def cpu_pools(self) -> tuple[Pool, ...]:
        """All nodes, those with GPUs apart from those without."""
        gathered = self._gathered(lambda node: bool(node.gpus))
        return tuple(Pool(members, None, has_gpus=bool(members[0].gpus)) for members in gathered)

    @cached_property
    def unusable(self) -> tuple[NodeGPUs, ...]:
        return tuple(NodeGPUs(node, gpu) for node in self.nodes for gpu in node.gpus if not gpu.usable)

    def _gathered(self, kind: Callable[[NodeView], Hashable]) -> tuple[tuple[NodeView, ...], ...]:
        """Nodes by what the scheduler's filters look at. Taints are compared by identity: equal ones are one
        object (`inventory.nodes`)."""
        found: dict[Hashable, list[NodeView]] = defaultdict(list)
        keys = self._keys
        for node in self.nodes:
            get = node.labels.get
            traits = (
                kind(node),
                id(node.taints),
                node.unschedulable,
                node.ready,
                *[get(key) for key in keys],
            )
            found[traits].append(node)
        return tuple(tuple(members) for members in found.values())


class Wanted:
    """Which GPUs `placement` asks for."""

    def __init__(self, placement: Placement) -> None:
        accelerators = placement.accelerators
        self._sharing, self._allocation = placement.sharing, placement.allocation
        self._products = tuple(accelerators.products)
        self._memory_text = accelerators.min_memory
        self._memory = at_least(accelerators.min_memory) if accelerators.min_memory else 0
        self._capability = _capability(accelerators.min_compute_capability)

    def mismatch(self, gpu: GPUClass) -> str:
        """Why the GPU is not what was asked for; empty when it is."""
        sliced = gpu.sharing is Sharing.MIG
        if sliced is not (self._sharing is GPUSharing.MIG):
            has = f"MIG slices ({gpu.product})" if sliced else f"whole GPUs ({gpu.product})"
            return f"has {has}, placement.sharing is {self._sharing}"
        if self._allocation is not GPUAllocation.AUTO and self._allocation.value != gpu.allocation.value:
            return f"has {gpu.product} by {gpu.allocation}, placement.allocation is {self._allocation}"
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
