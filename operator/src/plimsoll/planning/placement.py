"""Which nodes the pods of an option go to.

Each stage goes to the node where taking its GPUs destroys the fewest larger slots: an 8-GPU node stays whole
while an odd GPU is free elsewhere. This is FGD's idea ("Beware of Fragmentation", ATC'23), exact for whole
GPUs; packing by most-allocated alone was rejected because it eats the last whole node of a pool that is
evenly used. A pod of many cores goes first of all where it leaves no GPU without cores beside it: a GPU that
nobody can use is lost whatever slot it is in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain

from plimsoll.api.v1alpha1 import PlanPlacement
from plimsoll.inventory.capacity import amounts
from plimsoll.planning.admission import Admitted
from plimsoll.planning.options import Option
from plimsoll.planning.room import Entry, Room
from plimsoll.planning.supply import Pool
from plimsoll.planning.topology import candidates

SLOTS = (8, 4, 2)
CPU_BESIDE_GPU = 6000
"""Millicores. A free GPU with less CPU beside it counts as lost, in part. On the openb trace 3000 to 8000 do
nearly as well (docs/benchmarks.md); workers of ours ask for 1500."""
STRANDED_STEPS = 4
"""Parts of a GPU that are told apart: CPU to spare matters more than a smaller difference."""


def slot_loss(free: int, taken: int) -> tuple[int, ...]:
    """Slots of 8, 4 and 2 GPUs that a node with `free` GPUs loses when `taken` of them go."""
    return tuple(free // slot - (free - taken) // slot for slot in SLOTS)


def newly_stranded(free: int, cpu: int, gpus: int, millis: int) -> int:
    """Quarters of GPUs that lose the CPU beside them when `gpus` and `millis` are taken of what is free."""
    before = max(0, free * CPU_BESIDE_GPU - cpu)
    after = max(0, (free - gpus) * CPU_BESIDE_GPU - (cpu - millis))
    return max(0, (after - before) * STRANDED_STEPS // CPU_BESIDE_GPU)


def ranked(option: Option, room: Room, admitted: Admitted | None = None) -> Iterator[str]:
    """Nodes of `admitted` (None: all that the option may use) with enough free GPUs (on CPU: memory), the
    best first; other resources are not looked at. GPU: no GPU left without cores, slot loss, the fullest
    node, the least CPU to spare. CPU: nodes without GPUs, the least memory to spare. Last the name, so that
    equal snapshots give equal plans. `room` must not change meanwhile."""
    admitted = admitted or option.admitted
    within = _by_slots if option.resource else _by_memory
    found = within(option, room, admitted.pools)
    return filter(admitted.admits, found) if admitted.admits else found


def _by_slots(option: Option, room: Room, pools: Sequence[Pool]) -> Iterator[str]:
    taken, millis = option.gpus_together, option.requests_together.cpu_millis
    shelves = [room.shelf(pool) for pool in pools]
    free = {level for shelf in shelves for level in shelf.levels(taken)}
    levels = sorted(free, key=lambda level: (slot_loss(level, taken), level))
    if millis > taken * CPU_BESIDE_GPU:
        yield from _sparing_cores([[shelf.at(level) for shelf in shelves] for level in levels], taken, millis)
        return
    for level in levels:
        yield from (name for _, _, name in merge(*(shelf.at(level) for shelf in shelves)))


def _sparing_cores(levels: Iterable[Sequence[list[Entry]]], gpus: int, millis: int) -> Iterator[str]:
    """By how many GPUs lose their cores, then in the order of `levels`."""

    def kept(entry: Entry) -> int:
        """Grows with a node's CPU, so that equals stand together."""
        return -newly_stranded(entry[0], entry[1], gpus, millis)

    by_level = [sorted(chain(*entries)) for entries in levels]
    most = (millis - gpus * CPU_BESIDE_GPU) * STRANDED_STEPS // CPU_BESIDE_GPU
    for stranded in range(most + 1):
        for nodes in by_level:
            first, last = (side(nodes, -stranded, key=kept) for side in (bisect_left, bisect_right))
            yield from (name for _, _, name in nodes[first:last])


def _by_memory(option: Option, room: Room, pools: Sequence[Pool]) -> Iterator[str]:
    least = option.requests.memory_bytes
    for has_gpus in (False, True):
        shelves = [room.shelf(pool) for pool in pools if pool.has_gpus is has_gpus]
        yield from (name for _, _, name in merge(*(shelf.upwards(least) for shelf in shelves)))


def best(option: Option, room: Room, admitted: Admitted | None = None) -> str | None:
    """The node that takes one more pod of the option, or all that must be together."""
    names = ranked(option, room, admitted)
    return next((name for name in names if not room.lacks(name, option.requests_together)), None)


def place_replicas(
    option: Option, replicas: Sequence[int], room: Room, *, one_node: bool = False
) -> list[PlanPlacement]:
    """Take room for as many of `replicas` as fit, and say where. `one_node`: all on one node (a volume that
    attaches once); the one that holds the most is chosen."""
    if one_node:
        return _on_one_node(option, replicas, room)
    placed: list[PlanPlacement] = []
    for replica in replicas:
        stages = _one_replica(option, replica, room)
        if not stages:
            break
        placed += stages
    return placed


def _one_replica(option: Option, replica: int, room: Room) -> list[PlanPlacement]:
    """All stages in the first domain that holds them; none when no domain does."""
    for admitted in candidates(option, room):
        stages = _stages(option, replica, room, admitted)
        if len(stages) == option.config.pipeline_parallel:
            return stages
        undo(option, stages, room)
    return []


def _stages(option: Option, replica: int, room: Room, admitted: Admitted) -> list[PlanPlacement]:
    """As many stages as fit, their room taken."""
    stages: list[PlanPlacement] = []
    for stage in range(option.config.pipeline_parallel):
        name = stages[0].node if stages and option.one_node else best(option, room, admitted)
        if name is None:
            break
        room.take(name, option.requests)
        stages.append(_placement(option, replica, stage, name))
    return stages


def holds_one(option: Option, room: Room) -> bool:
    """Whether a whole replica has room now."""
    if option.config.pipeline_parallel == 1:
        return best(option, room) is not None
    stages = _one_replica(option, 0, room)
    undo(option, stages, room)
    return bool(stages)


def most_stages(option: Option, room: Room, admitted: Admitted) -> int:
    """Stages of one replica that find a place there now."""
    stages = _stages(option, 0, room, admitted)
    undo(option, stages, room)
    return len(stages)


def _on_one_node(option: Option, replicas: Sequence[int], room: Room) -> list[PlanPlacement]:
    node, most = "", 0
    for name in ranked(option, room):
        there = min(len(replicas), _pods_held(option, name, room) // option.config.pipeline_parallel)
        if there > most:
            node, most = name, there
        if most == len(replicas):
            break
    stages = range(option.config.pipeline_parallel)
    placed = [_placement(option, replica, stage, node) for replica in replicas[:most] for stage in stages]
    for placement in placed:
        room.take(placement.node, option.requests)
    return placed


def _pods_held(option: Option, name: str, room: Room) -> int:
    """Pods of the option that fit on the node at once."""
    free = amounts(room.free(name))
    asked = amounts(option.requests).items()
    return min(max(0, free.get(resource, 0)) // amount for resource, amount in asked if amount > 0)


def _placement(option: Option, replica: int, stage: int, node: str) -> PlanPlacement:
    gpus = option.config.tensor_parallel if option.resource else 0
    return PlanPlacement(replica=replica, stage=stage, node=node, gpus=gpus)


def undo(option: Option, placed: Iterable[PlanPlacement], room: Room) -> None:
    for placement in placed:
        room.give_back(placement.node, option.requests)


def redo(option: Option, placed: Iterable[PlanPlacement], room: Room) -> None:
    """Take the room of placements that were undone."""
    for placement in placed:
        room.take(placement.node, option.requests)
