"""What is free on each node while one plan is made: the only mutable thing in planning, and it lives for one
call.

Free amounts are counted for the nodes that are looked at. What every placement looks at, the free GPUs (or
the free memory, on CPU), stands on a shelf for each pool, sorted, so that a placement touches a few nodes of
thousands.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from plimsoll.inventory.capacity import NOTHING, Shortage, add, amounts, held_on, shortages, subtract, total
from plimsoll.inventory.views import NodeView, PodView, Resources
from plimsoll.planning.supply import Pool

Entry = tuple[int, int, str]
"""Level, free millicores, node."""
LOWEST = -(1 << 62)
"""Less CPU than any node can be short of: a bound to search by."""


class Shelf:
    """The nodes of a pool by one free amount, the level; nodes of a level by free CPU, then by name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = sorted(entries)
        self.free = sum(entry[0] for entry in self._entries if entry[0] > 0)
        """Over all nodes; what a node is short of is not owed by the others."""

    def levels(self, least: int) -> list[int]:
        """The levels there are, from `least` on."""
        found: list[int] = []
        entries, at = self._entries, bisect_left(self._entries, (least, LOWEST, ""))
        while at < len(entries):
            found.append(entries[at][0])
            at = bisect_left(entries, (found[-1] + 1, LOWEST, ""))
        return found

    def at(self, level: int) -> list[Entry]:
        low = bisect_left(self._entries, (level, LOWEST, ""))
        return self._entries[low : bisect_left(self._entries, (level + 1, LOWEST, ""))]

    def upwards(self, least: int) -> Iterator[Entry]:
        """From the level `least` on. The shelf must not change meanwhile."""
        return iter(self._entries[bisect_left(self._entries, (least, LOWEST, "")) :])

    def slots(self, size: int) -> int:
        """GPUs that stand together in free slots of `size`."""
        return sum(entry[0] // size * size for entry in self._entries if entry[0] > 0)

    def move(self, before: Entry, after: Entry) -> None:
        del self._entries[bisect_left(self._entries, before)]
        insort(self._entries, after)
        self.free += max(0, after[0]) - max(0, before[0])


class Room:
    """Free amounts by node. Every `take` was allowed by `lacks`, or is a running pod's."""

    def __init__(self, nodes: Mapping[str, NodeView], pods: Iterable[PodView]) -> None:
        self._nodes = nodes
        self._held: dict[str, list[Resources]] = defaultdict(list)
        for pod in pods:
            if where := held_on(pod):
                self._held[where].append(pod.requests)
        self._free: dict[str, Resources] = {}
        self._shelves: dict[Pool, Shelf] = {}
        self._stands_on: dict[str, list[tuple[str, Shelf]]] = defaultdict(list)

    def free(self, name: str) -> Resources:
        """Allocatable less the effective requests of all pods, of any scheduler and namespace; nothing where
        there is no such node."""
        if (known := self._free.get(name)) is not None:
            return known
        if (node := self._nodes.get(name)) is None:
            return NOTHING
        self._free[name] = subtract(node.allocatable, total(self._held.get(name, ())))
        return self._free[name]

    def lacks(self, node: str, requested: Resources) -> tuple[Shortage, ...]:
        return shortages(requested, self.free(node))

    def take(self, node: str, requested: Resources) -> None:
        self._change(node, subtract, requested)

    def give_back(self, node: str, requested: Resources) -> None:
        self._change(node, add, requested)

    def _change(
        self, name: str, change: Callable[[Resources, Resources], Resources], requested: Resources
    ) -> None:
        if name not in self._nodes:
            return
        before = self.free(name)
        after = self._free[name] = change(before, requested)
        for resource, shelf in self._stands_on.get(name, ()):
            shelf.move(_entry(name, before, resource), _entry(name, after, resource))

    def shelf(self, pool: Pool) -> Shelf:
        """The pool's nodes by free GPUs; by free memory for pools of deployments on CPU."""
        if pool not in self._shelves:
            resource = pool.resource
            entries = [self._entry(node, resource) for node in pool.nodes]
            self._shelves[pool] = shelf = Shelf(entries)
            for _, _, name in entries:
                self._stands_on[name].append((resource, shelf))
        return self._shelves[pool]

    def _entry(self, node: NodeView, resource: str) -> Entry:
        """The same as of `free`, for thousands of nodes that nobody looks at any further."""
        if node.name in self._free:
            return _entry(node.name, self._free[node.name], resource)
        level, cpu = _level(node.allocatable, resource), node.allocatable.cpu_millis
        for held in self._held.get(node.name, ()):
            level -= _level(held, resource)
            cpu -= held.cpu_millis
        return level, cpu, node.name


def _entry(name: str, free: Resources, resource: str) -> Entry:
    return _level(free, resource), free.cpu_millis, name


def _level(amount: Resources, resource: str) -> int:
    return amount.extended.get(resource, 0) if resource else amount.memory_bytes


def overbooked(free: Mapping[str, Resources], promised: Mapping[str, Resources]) -> str:
    """The first promise that a node cannot hold, as a sentence; empty when there is none.

    `free`: what every node has left with the whole plan counted in; `promised`: what the plan newly promises
    by node. Only resources that are promised are looked at: a node may be over-committed in others by pods
    that were there before.
    """
    for node, requested in promised.items():
        left = amounts(free.get(node, NOTHING))
        for name, amount in amounts(requested).items():
            if amount > 0 and left.get(name, 0) < 0:
                return (
                    f"{node} is over-booked: {name} is {-left.get(name, 0)} short once {amount} are promised"
                )
    return ""


def pods_by_owner(pods: Iterable[PodView], owners: Iterable[str]) -> dict[str, list[PodView]]:
    wanted = set(owners)
    found: dict[str, list[PodView]] = {}
    for pod in pods:
        if pod.owner_uid in wanted:
            found.setdefault(pod.owner_uid, []).append(pod)
    return found
