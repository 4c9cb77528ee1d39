"""What is free on each node while one plan is made: the only mutable thing in planning, and it lives for one
call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plimsoll.inventory.capacity import NOTHING, Shortage, add, amounts, shortages, subtract
from plimsoll.inventory.views import PodView, Resources


class Room:
    """Free amounts by node. Every `take` was allowed by `lacks`, or is a running pod's."""

    def __init__(self, free: Mapping[str, Resources]) -> None:
        self._free = dict(free)

    def free(self, node: str) -> Resources:
        return self._free.get(node, NOTHING)

    def lacks(self, node: str, requested: Resources) -> tuple[Shortage, ...]:
        return shortages(requested, self.free(node))

    def take(self, node: str, requested: Resources) -> None:
        if node in self._free:
            self._free[node] = subtract(self._free[node], requested)

    def give_back(self, node: str, requested: Resources) -> None:
        if node in self._free:
            self._free[node] = add(self._free[node], requested)


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
