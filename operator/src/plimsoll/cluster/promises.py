"""The cluster as it will be once everything that was just decided has its pods.

One resource can then be planned again by itself, with everybody else's decision held fast: planning all of
them once more for each that rolls out would cost a plan of the whole cluster a resource.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from plimsoll.actuate.ownership import REPLICA, REVISION, STAGE
from plimsoll.cluster.case import Requests, Room
from plimsoll.inventory.capacity import held_on
from plimsoll.inventory.views import PodView
from plimsoll.planning.candidates import worker_requests
from plimsoll.planning.snapshot import Decision


class Promises:
    """Made when the first resource asks: in most rounds none does."""

    def __init__(self, room: Room, requests: Requests, decisions: Mapping[str, Decision]) -> None:
        self._room, self._requests, self._decisions = room, requests, decisions
        self._promised: Room | None = None

    def promised(self) -> Room:
        """The room with a pod for every place that was decided and has none yet."""
        if self._promised is None:
            self._promised = replace(self._room, pods=(*self._room.pods, *self._missing()))
        return self._promised

    def _missing(self) -> Iterator[PodView]:
        there = {(pod.owner_uid, *_place(pod)) for pod in self._room.pods if pod.owner_uid}
        for uid, request in self._requests.items():
            plan = self._decisions[uid].plan
            if plan is None:
                continue
            requests = worker_requests(plan, request.spec, request.facts)
            for place in plan.placements:
                which = plan.revision, str(place.replica), str(place.stage), place.node
                if (request.owner, *which) not in there:
                    yield PodView(
                        namespace=request.namespace,
                        name="",
                        uid="",
                        node="",
                        pinned_node=place.node,
                        phase="Pending",
                        terminating=False,
                        requests=requests,
                        owner_uid=request.owner,
                    )


def _place(pod: PodView) -> tuple[str, str, str, str]:
    labels = pod.labels
    return labels.get(REVISION, ""), labels.get(REPLICA, ""), labels.get(STAGE, ""), held_on(pod)
