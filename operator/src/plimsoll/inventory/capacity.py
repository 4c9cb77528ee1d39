"""Arithmetic over amounts: what pods hold on a node, what is left, and what a request lacks.

The rules are the scheduler's (kubernetes `pkg/scheduler/framework/plugins/noderesources/fit.go`): a resource
that is not asked for is not compared, so a node that is already over-committed in CPU still takes a pod that
asks for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.inventory.views import NodeView, PodView, Resources

CPU, MEMORY, EPHEMERAL, PODS = "cpu", "memory", "ephemeral-storage", "pods"
NOTHING = Resources()


@dataclass(frozen=True, slots=True)
class Shortage:
    """One resource of which a node has less than asked. CPU in millicores, storage in bytes."""

    resource: str
    needed: int
    available: int


def add(left: Resources, right: Resources) -> Resources:
    return Resources(
        cpu_millis=left.cpu_millis + right.cpu_millis,
        memory_bytes=left.memory_bytes + right.memory_bytes,
        ephemeral_bytes=left.ephemeral_bytes + right.ephemeral_bytes,
        pods=left.pods + right.pods,
        extended=_merge(left.extended, right.extended, 1),
    )


def subtract(left: Resources, right: Resources) -> Resources:
    """May be negative: a node can be over-committed by pods that were there before its allocatable shrank."""
    return Resources(
        cpu_millis=left.cpu_millis - right.cpu_millis,
        memory_bytes=left.memory_bytes - right.memory_bytes,
        ephemeral_bytes=left.ephemeral_bytes - right.ephemeral_bytes,
        pods=left.pods - right.pods,
        extended=_merge(left.extended, right.extended, -1),
    )


def largest(left: Resources, right: Resources) -> Resources:
    """The larger amount of each resource."""
    names = left.extended.keys() | right.extended.keys()
    return Resources(
        cpu_millis=max(left.cpu_millis, right.cpu_millis),
        memory_bytes=max(left.memory_bytes, right.memory_bytes),
        ephemeral_bytes=max(left.ephemeral_bytes, right.ephemeral_bytes),
        pods=max(left.pods, right.pods),
        extended={name: max(left.extended.get(name, 0), right.extended.get(name, 0)) for name in names},
    )


def _merge(left: Mapping[str, int], right: Mapping[str, int], sign: int) -> Mapping[str, int]:
    if not right:
        return left
    merged = dict(left)
    for name, amount in right.items():
        merged[name] = merged.get(name, 0) + sign * amount
    return merged


def amounts(resources: Resources) -> dict[str, int]:
    """The same as a mapping by Kubernetes resource name."""
    return {
        CPU: resources.cpu_millis,
        MEMORY: resources.memory_bytes,
        EPHEMERAL: resources.ephemeral_bytes,
        PODS: resources.pods,
        **resources.extended,
    }


def shortages(requested: Resources, free: Resources) -> tuple[Shortage, ...]:
    """The resources that are asked for and not there; empty when the request fits."""
    if _fits(requested, free):
        return ()
    there = amounts(free)
    return tuple(
        Shortage(name, amount, there.get(name, 0))
        for name, amount in amounts(requested).items()
        if amount > 0 and amount > there.get(name, 0)
    )


def _fits(requested: Resources, free: Resources) -> bool:
    return (
        (requested.cpu_millis <= 0 or requested.cpu_millis <= free.cpu_millis)
        and (requested.memory_bytes <= 0 or requested.memory_bytes <= free.memory_bytes)
        and (requested.ephemeral_bytes <= 0 or requested.ephemeral_bytes <= free.ephemeral_bytes)
        and (requested.pods <= 0 or requested.pods <= free.pods)
        and all(
            amount <= 0 or amount <= free.extended.get(name, 0) for name, amount in requested.extended.items()
        )
    )


def held_on(pod: PodView) -> str:
    """The node whose room a pod takes: where it is bound, else where it is pinned to; empty for neither."""
    return pod.node or pod.pinned_node


def free_by_node(nodes: Iterable[NodeView], pods: Iterable[PodView]) -> dict[str, Resources]:
    """Allocatable less the effective requests of all bound or pinned pods, of any scheduler and namespace.
    Terminating pods still hold theirs. Pods on nodes that are gone are left out."""
    used: dict[str, list[Resources]] = {}
    for pod in pods:
        if where := held_on(pod):
            used.setdefault(where, []).append(pod.requests)
    return {node.name: subtract(node.allocatable, total(used.get(node.name, ()))) for node in nodes}


def total(parts: Iterable[Resources]) -> Resources:
    cpu = memory = ephemeral = pods = 0
    extended: dict[str, int] = {}
    for part in parts:
        cpu += part.cpu_millis
        memory += part.memory_bytes
        ephemeral += part.ephemeral_bytes
        pods += part.pods
        for name, amount in part.extended.items():
            extended[name] = extended.get(name, 0) + amount
    return Resources(cpu, memory, ephemeral, pods, extended)
