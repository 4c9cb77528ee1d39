"""Which plan a resource's pods follow, and which plans status tells.

Planning answers afresh each time; status holds what was decided before. A decision that has no place for a
replica does not take the place away from a pod that lives there: a node that is not ready for a moment must
not cost a replica that may be back in the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from plimsoll.actuate.ownership import PLAN
from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import OwnPod

MAX_PLANS = 2


@dataclass(frozen=True, slots=True)
class Target:
    plan: PlanStatus | None
    """What pods are brought to; None: leave those that run alone."""
    plans: tuple[PlanStatus, ...]
    """For status.plans: what still serves, then what is wanted."""
    current_revision: str
    update_revision: str


def choose_target(observed: Observed, revision: Revision | None) -> Target:
    told = plans_in_force(observed)
    name = revision.name if revision else ""
    plan = _with_living_places(observed, told.get(name)) if revision else None
    older = [told[old] for old in _serving(observed.worker_pods) if old in told and old != name]
    plans = (*older[: MAX_PLANS - 1], *((plan,) if plan else ()))
    return Target(plan, plans, _current(observed, older, plan), name)


def plans_in_force(observed: Observed) -> dict[str, PlanStatus]:
    """What was decided before, by revision: from status, and where status was lost from the pods
    themselves."""
    told = {plan.revision: plan for plan in observed.resource.status.plans}
    for pod in _living(observed.worker_pods):
        if pod.revision not in told and (plan := _recovered(pod.revision, observed.worker_pods)):
            told[pod.revision] = plan
    return told


def _living(pods: Iterable[OwnPod]) -> list[OwnPod]:
    return [pod for pod in pods if not pod.terminating and not pod.finished]


def _recovered(revision: str, pods: Iterable[OwnPod]) -> PlanStatus | None:
    """The plan that pods carry in an annotation, with the places where they are."""
    mine = [pod for pod in _living(pods) if pod.revision == revision]
    for pod in mine:
        try:
            plan = PlanStatus.model_validate_json(pod.annotations.get(PLAN, ""))
        except ValidationError:
            continue
        gpus = plan.tensor_parallel if plan.resource_name else 0
        places = {
            (one.replica, one.stage): PlanPlacement(
                replica=one.replica, stage=one.stage, node=one.node or one.pinned_node, gpus=gpus
            )
            for one in mine
            if one.replica >= 0 and one.stage >= 0
        }
        return plan.model_copy(update={"revision": revision, "placements": _ordered(places.values())})
    return None


def _with_living_places(observed: Observed, told: PlanStatus | None) -> PlanStatus | None:
    """The decision's plan, and for replicas it has no place for, the place where a pod of theirs lives."""
    decision = observed.decision
    decided = decision.plan if decision else None
    if told is None:
        return decided
    placed = {placement.replica for placement in decided.placements} if decided else set()
    spec = observed.resource.spec
    wanted = spec.replicas if spec else 0
    living = {
        (pod.replica, pod.node or pod.pinned_node)
        for pod in _living(observed.worker_pods)
        if pod.revision == told.revision
    }
    kept = [
        placement
        for placement in told.placements
        if placement.replica not in placed
        and placement.replica < wanted
        and (placement.replica, placement.node) in living
    ]
    if not kept:
        return decided
    base = decided or told
    return base.model_copy(update={"placements": _ordered([*(decided.placements if decided else ()), *kept])})


def _ordered(placements: Iterable[PlanPlacement]) -> list[PlanPlacement]:
    return sorted(placements, key=lambda place: (place.replica, place.stage))


def _serving(pods: Iterable[OwnPod]) -> list[str]:
    """Revisions that have pods, terminating ones included, the youngest first."""
    newest: dict[str, str] = {}
    for pod in pods:
        newest[pod.revision] = max(pod.created, newest.get(pod.revision, ""))
    return sorted(newest, key=lambda revision: newest[revision], reverse=True)


def _current(observed: Observed, older: list[PlanStatus], plan: PlanStatus | None) -> str:
    """The revision whose pods serve: the older one until it is gone."""
    if older:
        return older[0].revision
    if plan and any(pod.revision == plan.revision for pod in observed.worker_pods):
        return plan.revision
    return ""
