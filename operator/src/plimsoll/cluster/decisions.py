"""Turns what is observed into planning's snapshot, and planning's answers into one course per resource. Pure.

A resource that rolls out is planned for two revisions at once: the replicas of the old one that stay, and
those of the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from plimsoll.api.v1alpha1 import PlanMode
from plimsoll.cluster.case import Case, Requests, Room
from plimsoll.cluster.course import Course, intend
from plimsoll.cluster.inspection import inspect_model
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.promises import Promises
from plimsoll.cluster.steering import PLANNER_FAILED, Steering
from plimsoll.cluster.targets import plans_in_force, standing_replicas
from plimsoll.cluster.wanted import wanted
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decision, Rejection

__all__ = ["LastPlan", "Room", "decide"]

log = logging.getLogger(__name__)


class LastPlan:
    """The answers of the last round, for as long as nothing that planning reads is another one.

    Many rounds come of what planning does not see: a report, a condition, a time that is up. What has no
    place is by far the dearest to plan, since every way to run it is looked at and told of. So all that
    planning is given is compared, and planning is pure: whatever frees room, an exclusion whose time is over
    and another priority are in it. To skip single resources while the cluster changes was rejected: the words
    of a rejection tell what is free.
    """

    def __init__(self) -> None:
        self._given: tuple[Room, Requests] | None = None
        self._decided: Mapping[str, Decision] = {}

    def answers(self, room: Room, requests: Requests) -> tuple[Mapping[str, Decision], Requests]:
        """The decisions, and what can be planned."""
        if self._given == (room, requests):
            return self._decided, requests
        decided, sound = _plan(room, requests)
        # A plan that broke is tried again: what broke it may have been the machine.
        self._given = (room, requests) if len(sound) == len(requests) else None
        self._decided = decided
        return decided, sound


def decide(observed: Iterable[Observed], room: Room, last: LastPlan) -> Mapping[str, Course]:
    """Courses by uid, for all resources that parse."""
    cases = [_case(one, room) for one in observed if one.resource.spec and not one.resource.deleting]
    requests: Requests = {}
    for case in cases:
        requests |= case.requests(case.intent, room.priorities)
    decisions, sound = last.answers(room, requests)
    promises = Promises(room, sound, decisions)
    return {case.uid: _course(case, promises, decisions) for case in cases}


def _course(case: Case, promises: Promises, decisions: Mapping[str, Decision]) -> Course:
    """What stands goes on where working out the next step fails."""
    try:
        return Steering(case, promises, decisions).course()
    except Exception as error:
        log.exception("planning again fails with %s/%s", *case.observed.resource.key)
        return Course(_fault(error), case.intent)


def _case(one: Observed, room: Room) -> Case:
    spec = one.resource.spec
    assert spec is not None, "only resources that parse are planned"
    revision = wanted(one, inspect_model(one))
    update = revision.name if revision else ""
    told = plans_in_force(one)
    found = standing_replicas(one)
    if spec.suspend or spec.plan.mode is not PlanMode.APPLY:
        found = [replica for replica in found if replica.revision == update]
    chooses = len(found) > spec.replicas or any(replica.revision != update for replica in found)
    free = room.free_gpus(found, {plan.resource_name for plan in told.values()}) if chooses else {}
    return Case(one, spec, revision, intend(found, spec, update, free), told, free)


def _plan(room: Room, requests: Requests) -> tuple[dict[str, Decision], Requests]:
    """All at once; and if planning breaks on one of them, without that one: a fault that one resource brings
    to light must not stop the others. Its own pods are left alone, and it is told. Second: what can be
    planned."""
    try:
        return dict(plan(room.snapshot(requests.values()))), requests
    except Exception:
        log.exception("planning failed, looking for the resource that it fails on")
    sound: Requests = {}
    faulty: dict[str, Decision] = {}
    for uid, request in requests.items():
        try:
            plan(room.snapshot([*sound.values(), request]))
        except Exception as error:
            log.exception("planning fails with %s/%s", request.namespace, request.name)
            faulty[uid] = _fault(error)
        else:
            sound[uid] = request
    return dict(plan(room.snapshot(sound.values()))) | faulty, sound


def _fault(error: Exception) -> Decision:
    message = f"planning failed, this is a fault of Plimsoll: {type(error).__name__}: {error}"
    return Decision(None, Rejection(PLANNER_FAILED, message))
