"""Which placements of a plan in force stay: a running replica is only moved when its node no longer carries
it.

A pod that runs stays wherever it is: cordons, changed taints and exclusions are about new pods, and a node
that is not ready may come back. When it does not, Kubernetes evicts the pod (after five minutes by default);
a terminating pod no longer speaks for its placement, and the replica is placed anew. So the cluster's own
patience is used, not a second one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import PlanPlacement
from plimsoll.inventory.capacity import held_on, largest, total
from plimsoll.inventory.views import PodView, Resources
from plimsoll.planning.eligibility import Eligibility
from plimsoll.planning.options import worker_requests
from plimsoll.planning.room import Room
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import Supply

REPLICA_LABEL, STAGE_LABEL = "plimsoll.dev/replica", "plimsoll.dev/stage"
REVISION_LABEL = "plimsoll.dev/revision"


@dataclass(frozen=True, slots=True)
class Held:
    """What one kept placement holds on its node."""

    placement: PlanPlacement
    resources: Resources
    pods: tuple[PodView, ...]
    """Its own pods, whose requests `resources` stands for."""
    running: bool


def keep(
    request: DeploymentRequest, own: Sequence[PodView], supply: Supply, eligibility: Eligibility, room: Room
) -> tuple[Held, ...]:
    """The placements that stay, their room taken. `room` counts the deployment's own pods on entry; for
    placements that stay it counts the placement instead, so that a pod and its own place are not counted
    twice."""
    if request.current is None:
        return ()
    stages: dict[int, list[PlanPlacement]] = {}
    wanted = set(request.wanted)
    for placement in request.current.placements:
        if placement.replica in wanted:
            stages.setdefault(placement.replica, []).append(placement)
    kept: list[Held] = []
    for replica in sorted(stages):
        kept += _keep_replica(request, stages[replica], own, supply, eligibility, room)
    return tuple(kept)


def _keep_replica(
    request: DeploymentRequest,
    placements: Iterable[PlanPlacement],
    own: Sequence[PodView],
    supply: Supply,
    eligibility: Eligibility,
    room: Room,
) -> list[Held]:
    held: list[Held] = []
    for placement in placements:
        entry = _held(request, placement, own)
        if entry.running and len(entry.pods) == 1 and placement.node in supply.by_name:
            # Its one pod runs: the room counts it already, as it counts the placement.
            held.append(entry)
            continue
        counted = total(pod.requests for pod in entry.pods)
        room.give_back(placement.node, counted)
        node = supply.by_name.get(placement.node)
        stays = node is not None and (
            entry.running
            or (eligibility.obstacle(node) is None and not room.lacks(node.name, entry.resources))
        )
        if not stays:
            room.take(placement.node, counted)
            release(held, room)
            return []
        room.take(placement.node, entry.resources)
        held.append(entry)
    return held


def release(held: Iterable[Held], room: Room) -> None:
    """Give up kept placements again: their pods, if any, count for themselves."""
    for entry in held:
        room.give_back(entry.placement.node, entry.resources)
        room.take(entry.placement.node, total(pod.requests for pod in entry.pods))


def _held(request: DeploymentRequest, placement: PlanPlacement, own: Sequence[PodView]) -> Held:
    assert request.current is not None, "only placements of a plan in force are kept"
    pods = tuple(pod for pod in own if _belongs(pod, placement, request.revision))
    live = [pod for pod in pods if not pod.terminating]
    if live:
        resources = live[0].requests
        for pod in live[1:]:
            resources = largest(resources, pod.requests)
    else:
        resources = worker_requests(request.current, request.spec, request.facts)
    return Held(placement, resources, pods, running=any(pod.node == placement.node for pod in live))


def _belongs(pod: PodView, placement: PlanPlacement, revision: str) -> bool:
    """A label that is missing does not speak against a pod: it is owned and on the node."""
    return (
        held_on(pod) == placement.node
        and pod.labels.get(REPLICA_LABEL, str(placement.replica)) == str(placement.replica)
        and pod.labels.get(STAGE_LABEL, str(placement.stage)) == str(placement.stage)
        and pod.labels.get(REVISION_LABEL, revision) == revision
    )
