"""The ledger of promises: what was given to pods that the informer does not show yet.

Between a pod's creation and its first appearance in a watch, its GPUs look free. Without this ledger two
quick plans would promise them twice. Over-booking is an assertion: it can only come from a fault in planning,
and creating the pod would turn that fault into a pod that never starts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from plimsoll.inventory.capacity import add, amounts, held_on, subtract, total
from plimsoll.inventory.views import NodeView, PodView

EXPIRY_SECONDS = 120.0
"""A pod of which neither an answer nor a list told anything by then does not exist: the API server ends
requests after a minute, and this program waits for half a one."""

Key = tuple[str, str]


class Overbooked(AssertionError):
    """A pod would take more of a node than is there."""


@dataclass(frozen=True, slots=True)
class Held:
    view: PodView
    since: float
    there_at: float | None = None
    """When the API server had said that the pod exists; None: it has not answered, and may or may not have
    made it."""


class Ledger:
    """Times are seconds of a monotonic clock, given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Key, Held] = {}

    def settle(self, shown: Iterable[Key], now: float, listed_at: float) -> None:
        """Drop promises whose pods the informer shows, those whose pods came and went unseen, and expired
        ones. `listed_at`: when the last whole list of which `shown` knows was begun."""
        seen = set(shown)
        with self._lock:
            self._held = {
                key: held
                for key, held in self._held.items()
                if key not in seen
                and now - held.since < EXPIRY_SECONDS
                and (held.there_at is None or listed_at <= held.there_at)
            }

    def promise(self, pod: PodView, node: NodeView | None, pods: Iterable[PodView], now: float) -> None:
        """Hold what `pod` asks for. `pods` are those of the same snapshot that the plan was made from.

        Raises Overbooked when the node has not enough left of an extended resource or of memory.
        """
        with self._lock:
            key = (pod.namespace, pod.name)
            where = held_on(pod)
            if node is None or node.name != where:
                raise Overbooked(f"pod {pod.namespace}/{pod.name} is planned on {where!r}, which is no node")
            others = [other for other in pods if (other.namespace, other.name) != key]
            others += [held.view for name, held in self._held.items() if name != key]
            mine = total(other.requests for other in others if held_on(other) == where)
            left = amounts(subtract(node.allocatable, add(mine, pod.requests)))
            for resource in ("memory", *pod.requests.extended):
                if left.get(resource, 0) < 0 and amounts(pod.requests).get(resource, 0) > 0:
                    asked = amounts(pod.requests)[resource]
                    raise Overbooked(
                        f"pod {pod.namespace}/{pod.name} asks for {asked} {resource} of node {where}, "
                        f"which is {-left[resource]} more than it has left"
                    )
            self._held[key] = Held(pod, now)

    def confirm(self, key: Key, now: float) -> None:
        """The API server has said that the pod exists: a list that is begun later shows it, or it is gone."""
        with self._lock:
            if held := self._held.get(key):
                self._held[key] = replace(held, there_at=now)

    def release(self, key: Key) -> None:
        """The pod was not created after all, or is gone again before a snapshot showed it."""
        with self._lock:
            self._held.pop(key, None)

    def held(self) -> Mapping[Key, Held]:
        with self._lock:
            return dict(self._held)
