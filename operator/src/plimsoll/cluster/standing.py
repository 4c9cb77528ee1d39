"""A replica as a roll-out sees it, and which replicas are missed the least. Pure.

A replica that a plan gave a place to stands until a plan takes the place away, also while its pods are gone;
a pod without a place is on its way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import PlanPlacement


@dataclass(frozen=True, slots=True)
class Standing:
    """One replica that has a place, or has given up."""

    revision: str
    replica: int
    ready: bool
    """All of its pods answer."""
    failed: bool
    """It does not answer, and not because it is just starting."""
    places: tuple[PlanPlacement, ...] = ()
    """Empty when it has given up."""

    def slot(self, free: Mapping[str, int]) -> int:
        """GPUs that would stand together on one of its nodes if it went. `free`: by node."""
        by_node: dict[str, int] = {}
        for place in self.places:
            by_node[place.node] = by_node.get(place.node, 0) + place.gpus
        return max((gpus + free.get(node, 0) for node, gpus in by_node.items()), default=0)


def worth(one: Standing, free: Mapping[str, int]) -> tuple[bool, bool, int, int]:
    """Sort key, the least missed first: what has failed, what does not answer yet, whose loss frees the most
    GPUs together on a node, then the highest number."""
    return not one.failed, one.ready, -one.slot(free), -one.replica


def most_worth(found: Iterable[Standing], count: int, free: Mapping[str, int]) -> list[Standing]:
    """The `count` that stay when the others go, by number."""
    ordered = sorted(found, key=lambda one: worth(one, free), reverse=True)
    return sorted(ordered[: max(0, count)], key=lambda one: (one.revision, one.replica))
