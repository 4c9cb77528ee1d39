"""Which plans a resource's pods follow, and which plans status tells.

Planning answers afresh each time; status holds what was decided before. A decision that has no place for a
replica does not take the place away from a pod that lives there: a node that is not ready for a moment must
not cost a replica that may be back in the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from pydantic import ValidationError

from plimsoll.actuate.ownership import PLAN
from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import OwnPod
from plimsoll.cluster.standing import Standing

MAX_PLANS = 2


@dataclass(frozen=True, slots=True)
class Target:
    plan: PlanStatus | None
    """Of the wanted revision."""
    older: tuple[PlanStatus, ...]
    """Of older revisions that go on for now; the one that serves comes first."""
    current_revision: str
    update_revision: str
    known: bool = True
    """False: nothing is known of what is wanted, so pods that run are left alone."""

    @property
    def plans(self) -> tuple[PlanStatus, ...]:
        """For status.plans: what still serves, then what is wanted."""
        return (*self.older[: MAX_PLANS - 1], *((self.plan,) if self.plan else ()))


def choose_target(observed: Observed, revision: Revision | None) -> Target:
    told = plans_in_force(observed)
    name = revision.name if revision else ""
    course = observed.course
    if course is None:
        older = [plan for other, plan in told.items() if other != name]
        return Target(
            told.get(name),
            tuple(older),
            observed.resource.status.current_revision,
            name,
            known=False,
        )
    decided = course.decision.plan if course.decision else None
    plan = _with_living_places(observed, told.get(name), decided, course.intent.placed)
    older = []
    for other, replicas in course.intent.kept().items():
        kept = _with_living_places(observed, told.get(other), course.older.get(other), replicas)
        if kept and kept.placements:
            older.append(kept)
    current = observed.resource.status.current_revision
    older.sort(key=lambda one: (one.revision != current, -len(one.placements), one.revision))
    return Target(plan, tuple(older), _current(observed, older, plan), name)


def plans_in_force(observed: Observed) -> dict[str, PlanStatus]:
    """What was decided before, by revision: from status, and where status was lost from the pods
    themselves."""
    told = {plan.revision: plan for plan in observed.resource.status.plans}
    for pod in _living(observed.worker_pods):
        if pod.revision not in told and (plan := _recovered(pod.revision, observed.worker_pods)):
            told[pod.revision] = plan
    return told


def standing_replicas(observed: Observed) -> list[Standing]:
    """All replicas of all revisions, those that gave up included."""
    given_up = {(told.revision, told.replica) for told in observed.accounts if told.given_up}
    found = [
        _standing(plan, replica, tuple(places), observed.worker_pods)
        for plan in plans_in_force(observed).values()
        for replica, places in groupby(_ordered(plan.placements), lambda place: place.replica)
        if (plan.revision, replica) not in given_up
    ]
    return found + [Standing(*which, ready=False, failed=True) for which in sorted(given_up)]


def _standing(
    plan: PlanStatus, replica: int, places: tuple[PlanPlacement, ...], pods: Iterable[OwnPod]
) -> Standing:
    mine = [pod for pod in pods if (pod.revision, pod.replica) == (plan.revision, replica)]
    living = _living(mine)
    return Standing(
        revision=plan.revision,
        replica=replica,
        ready=len(living) >= plan.pipeline_parallel and all(pod.ready for pod in living),
        failed=any(pod.finished or (pod.container.failed and not pod.ready) for pod in mine),
        places=places,
    )


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


def _with_living_places(
    observed: Observed, told: PlanStatus | None, decided: PlanStatus | None, wanted: Iterable[int]
) -> PlanStatus | None:
    """The decided plan, and for wanted replicas it has no place for, the place where a pod of theirs
    lives."""
    if told is None:
        return decided
    placed = {placement.replica for placement in decided.placements} if decided else set()
    living = {
        (pod.replica, pod.node or pod.pinned_node)
        for pod in _living(observed.worker_pods)
        if pod.revision == told.revision
    }
    kept = [
        placement
        for placement in told.placements
        if placement.replica in set(wanted) - placed and (placement.replica, placement.node) in living
    ]
    if not kept:
        return decided
    base = decided or told
    return base.model_copy(update={"placements": _ordered([*(decided.placements if decided else ()), *kept])})


def _ordered(placements: Iterable[PlanPlacement]) -> list[PlanPlacement]:
    return sorted(placements, key=lambda place: (place.replica, place.stage))


def _current(observed: Observed, older: list[PlanStatus], plan: PlanStatus | None) -> str:
    """The revision whose pods serve: the older one until it has no place and the new one answers."""
    if older:
        return older[0].revision
    before = observed.resource.status.current_revision
    pods = {pod.revision: pod.ready for pod in sorted(observed.worker_pods, key=lambda pod: pod.ready)}
    if plan and plan.revision in pods and (pods[plan.revision] or before not in pods):
        return plan.revision
    return before if before in pods else ""
