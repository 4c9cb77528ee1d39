"""Which nodes the pods of an option go to.

Each stage goes to the node where taking its GPUs destroys the fewest larger slots: an 8-GPU node stays whole
while an odd GPU is free elsewhere. This is FGD's idea ("Beware of Fragmentation", ATC'23), exact for whole
GPUs and O(nodes); packing by most-allocated alone was rejected because it eats the last whole node of a pool
that is evenly used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from plimsoll.api.v1alpha1 import PlanPlacement
from plimsoll.inventory.views import NodeView, Resources
from plimsoll.planning.candidates import Option
from plimsoll.planning.room import Room

SLOTS = (8, 4, 2)
Rank = tuple[object, ...]


def slot_loss(free: int, taken: int) -> tuple[int, ...]:
    """Slots of 8, 4 and 2 GPUs that a node with `free` GPUs loses when `taken` of them go."""
    return tuple(free // slot - (free - taken) // slot for slot in SLOTS)


def rank(option: Option, node: NodeView, room: Room, *, gpu_node: bool) -> tuple[tuple[int, ...], str]:
    """Sort key, best first. GPU: slot loss, then the fullest node. CPU: nodes without GPUs, then the least
    memory to spare. Last the name, so that equal snapshots give equal plans."""
    free = room.free(node.name)
    if option.draft.resource_name:
        gpus = free.extended.get(option.draft.resource_name, 0)
        return (*slot_loss(gpus, option.draft.tensor_parallel), gpus), node.name
    return (int(gpu_node), free.memory_bytes), node.name


def place_replicas(
    option: Option,
    replicas: Sequence[int],
    room: Room,
    *,
    eligible: Callable[[NodeView], bool],
    gpu_nodes: frozenset[str],
    one_node: bool = False,
) -> list[PlanPlacement]:
    """Take room for as many of `replicas` as fit, and say where. `one_node`: all on one node (a volume that
    attaches once); the one that holds the most is chosen."""
    nodes = [node for node in option.nodes if eligible(node)]
    if not one_node:
        return _fill(option, replicas, room, nodes, gpu_nodes)
    best: list[PlanPlacement] = []
    for node in sorted(nodes, key=lambda node: rank(option, node, room, gpu_node=node.name in gpu_nodes)):
        placed = _fill(option, replicas, room, [node], gpu_nodes)
        undo(option, placed, room)
        if len(placed) > len(best):
            best = placed
        if len(best) == len(replicas):
            break
    for placement in best:
        room.take(placement.node, option.requests)
    return best


def undo(option: Option, placed: Iterable[PlanPlacement], room: Room) -> None:
    for placement in placed:
        room.give_back(placement.node, option.requests)


def _fill(
    option: Option, replicas: Sequence[int], room: Room, nodes: Sequence[NodeView], gpu_nodes: frozenset[str]
) -> list[PlanPlacement]:
    placed: list[PlanPlacement] = []
    for replica in replicas:
        stages: list[PlanPlacement] = []
        for stage in range(option.draft.pipeline_parallel):
            node = _best(option, option.requests, room, nodes, gpu_nodes)
            if node is None:
                undo(option, stages, room)
                return placed
            room.take(node.name, option.requests)
            gpus = option.draft.tensor_parallel if option.draft.resource_name else 0
            stages.append(PlanPlacement(replica=replica, stage=stage, node=node.name, gpus=gpus))
        placed += stages
    return placed


def _best(
    option: Option, requests: Resources, room: Room, nodes: Sequence[NodeView], gpu_nodes: frozenset[str]
) -> NodeView | None:
    fitting = (node for node in nodes if not room.lacks(node.name, requests))
    return min(
        fitting, key=lambda node: rank(option, node, room, gpu_node=node.name in gpu_nodes), default=None
    )
