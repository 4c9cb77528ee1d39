"""Conditions: what is known about a deployment, said the way Kubernetes says it.

The reconciler gathers an `Observation` and this module words it, in one place, so that `kubectl get llmdep`
always tells one story: a replica comes to answer in steps, and Ready takes status, reason and message from
the first step that does not hold. Conditions set one by one, wherever something happens, were rejected: they
end up contradicting each other, and nobody can say which is the newest.

    step       holds                            does not hold                      condition
    spec       it parses                        InvalidSpec                        Planned
    suspend    it is off                        Suspended
    model      its headers were read            ResolvingModel, ModelNotFound, …   ModelResolved
    plan       every replica has a place        Planning, InsufficientMemory, …    Planned
    wanted     pods are wanted                  PlanOnly, ScaledToZero
    nodes      every pod is on its node         Scheduling, Unschedulable, …       Scheduled
    workers    all of this revision answer      OOMKilled, NodeNotReady, …       (Available: any revision)
    verified   no report contradicts the plan   EffectiveConfigMismatch, …         Verified

Pure: time and the previous conditions are passed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from plimsoll.api.v1alpha1 import Condition

MAX_MESSAGE = 32_768
"""Of metav1.Condition, in characters."""


class ConditionType(StrEnum):
    """All conditions of an LLMDeployment, in the order in which they are shown."""

    READY = "Ready"
    AVAILABLE = "Available"
    MODEL_RESOLVED = "ModelResolved"
    PLANNED = "Planned"
    SCHEDULED = "Scheduled"
    VERIFIED = "Verified"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one step. `holds` None: not known yet."""

    holds: bool | None
    reason: str
    """One CamelCase word."""
    message: str = ""


def holds(reason: str, message: str = "") -> Finding:
    return Finding(True, reason, message)


def fails(reason: str, message: str) -> Finding:
    return Finding(False, reason, message)


def pending(reason: str, message: str = "") -> Finding:
    return Finding(None, reason, message)


RESOLVING_MODEL = pending("ResolvingModel", "a short-lived pod reads the model's headers")
WAITING_FOR_MODEL = pending("WaitingForModel", "planned as soon as the model is known")
PLANNING = pending("Planning", "the plan is being computed")
AWAITING_REPORT = pending("AwaitingReport", "no worker has reported yet")


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker that failed and does not answer since."""

    reason: str
    """Of the worker's own exit reason, else of the container's state."""
    message: str
    """What happened, and what follows."""
    pod: str


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that conditions speak of.

    A replica counts when all of its pods do. The newest revision is the one that this generation wants.
    """

    generation: int
    desired: int = 1
    """Replicas wanted; 0 too when the spec does not parse."""
    existing: int = 0
    """Replicas that have pods, of any revision."""
    ready: int = 0
    """Replicas that answer, of any revision."""
    updated: int = 0
    """Replicas of the newest revision."""
    due: int | None = None
    """Replicas of the newest revision that a roll-out has come to. None: all that are wanted."""
    updated_scheduled: int = 0
    """Replicas of the newest revision whose pods are bound to nodes."""
    updated_ready: int = 0
    """Replicas of the newest revision that answer."""
    invalid: str = ""
    """Why the spec does not parse; empty when it does."""
    suspended: bool = False
    plan_only: bool = False
    model: Finding = RESOLVING_MODEL
    plan: Finding = PLANNING
    """Fails when one replica has no place, even if others have."""
    unschedulable: str = ""
    """The scheduler's words about a pod that finds no node."""
    starting: str = ""
    """Until when a pod may load its model."""
    refused: str = ""
    """The API server's words when it refused a pod (quota, admission)."""
    failures: tuple[Failure, ...] = ()
    given_up: tuple[Failure, ...] = ()
    """Of replicas whose restarts are used up."""
    away: tuple[Failure, ...] = ()
    """Pods on nodes that are not ready; they may still be counted as answering."""
    rollout: Finding | None = None
    """How replicas are being replaced, and why so; None while none are."""
    held: str = ""
    """Why a changed spec is not acted on; empty when it is."""
    late: str = ""
    """How long nothing has changed for the better, once that is too long."""
    exposed: bool = True
    """The Services are there."""
    taken: str = ""
    """Which objects of somebody else have the names of ours."""
    verified: Finding = AWAITING_REPORT
    promised: int | None = None
    """Replicas that a roll-out keeps answering. None: all but one, and at least one."""
    url: str = ""


def conditions(seen: Observation, previous: Iterable[Condition] = (), *, now: datetime) -> list[Condition]:
    """All conditions of `seen`. `lastTransitionTime` is kept from `previous` unless the status flips."""
    found = {
        ConditionType.READY: _ready(seen),
        ConditionType.AVAILABLE: _available(seen),
        ConditionType.MODEL_RESOLVED: seen.model,
        ConditionType.PLANNED: _planned(seen),
        ConditionType.SCHEDULED: _scheduled(seen),
        ConditionType.VERIFIED: _verified(seen),
        ConditionType.PROGRESSING: _progressing(seen),
        ConditionType.DEGRADED: _degraded(seen),
    }
    return _dated(found, seen.generation, previous, now)


# --- the steps, in order --------------------------------------------------------------------------


def _steps(seen: Observation) -> tuple[Finding, ...]:
    return (
        _valid(seen),
        _active(seen),
        seen.model,
        _planned(seen),
        _wanted(seen),
        _bound(seen),
        _workers(seen),
    )


def _first_obstacle(seen: Observation) -> Finding | None:
    """The first step that does not hold; None when all do.

    A report that cannot be read is no obstacle: the worker has checked itself before it turned ready.
    """
    obstacle = next((step for step in _steps(seen) if step.holds is not True), None)
    if obstacle is None and seen.verified.holds is False:
        return seen.verified
    return obstacle


def _valid(seen: Observation) -> Finding:
    return fails("InvalidSpec", seen.invalid) if seen.invalid else holds("Valid")


def _active(seen: Observation) -> Finding:
    if seen.suspended:
        return fails("Suspended", "spec.suspend is true: plan and Service are kept, no pod runs")
    return holds("Active")


def _planned(seen: Observation) -> Finding:
    if seen.invalid:
        return _valid(seen)
    if seen.held:
        return fails("ReplanHeld", seen.held)
    if seen.model.holds is not True and seen.plan.holds is None:
        return WAITING_FOR_MODEL
    return seen.plan


def _wanted(seen: Observation) -> Finding:
    if seen.plan_only:
        return fails("PlanOnly", "spec.plan.mode is PlanOnly: the plan is in status.plans, no pod is started")
    if seen.desired == 0 and not seen.invalid:
        return fails("ScaledToZero", "spec.replicas is 0")
    return holds("Wanted")


def _off(seen: Observation) -> Finding | None:
    """Why nobody wants pods; None when somebody does."""
    return next((step for step in (_active(seen), _wanted(seen)) if not step.holds), None)


def _scheduled(seen: Observation) -> Finding:
    if off := _off(seen):
        return pending(off.reason, off.message)
    if seen.refused:
        return fails("PodRefused", f"{seen.refused}; tried again with growing pauses")
    if seen.unschedulable:
        return fails("Unschedulable", seen.unschedulable)
    due = seen.desired if seen.due is None else seen.due
    told = f"{seen.updated_scheduled} of {due} replicas are on their nodes"
    if seen.updated_scheduled + len(seen.given_up) >= due:
        return holds("Scheduled", told)
    if _planned(seen).holds is not True:
        return pending("WaitingForPlan", told)
    return pending("Scheduling", told)


def _bound(seen: Observation) -> Finding:
    """A replica that waits for its next attempt has no pod on a node: what it failed of is the obstacle."""
    found = _scheduled(seen)
    return _failing(seen) if found.reason == "Scheduling" and seen.failures else found


def _workers(seen: Observation) -> Finding:
    told = f"{seen.updated_ready} of {seen.desired} replicas answer"
    if seen.updated_ready < seen.desired:
        if seen.failures or seen.given_up:
            return _failing(seen)
        if seen.away:
            return _told(seen.away)
        if seen.existing > seen.updated:
            return fails(
                "Updating", f"{seen.updated_ready} of {seen.desired} replicas answer with the new revision"
            )
        return fails("Starting", f"{told}; {seen.starting}" if seen.starting else told)
    if seen.existing > seen.updated:
        return fails("Updating", f"{told}; {seen.existing - seen.updated} of an older revision are stopping")
    if seen.existing > seen.desired:
        return fails("ScalingDown", f"{told}; {seen.existing - seen.desired} more are stopping")
    if not seen.exposed and seen.taken:
        return fails("NameTaken", seen.taken)
    if not seen.exposed:
        return fails("Exposing", f"{told}; the Services are being written")
    return holds("Ready", f"{told} at {seen.url}" if seen.url else told)


def _failing(seen: Observation) -> Finding:
    return _told((*seen.given_up, *seen.failures))


def _told(failures: tuple[Failure, ...]) -> Finding:
    worst, *others = failures
    more = f" (and {len(others)} more)" if others else ""
    whose = f"pod {worst.pod}: " if worst.pod else ""
    return fails(worst.reason, f"{whose}{worst.message}{more}")


def _verified(seen: Observation) -> Finding:
    off = _off(seen)
    return pending(off.reason, off.message) if off else seen.verified


# --- the summaries --------------------------------------------------------------------------------


def _ready(seen: Observation) -> Finding:
    return _first_obstacle(seen) or _workers(seen)


def _available(seen: Observation) -> Finding:
    if off := _off(seen):
        return off
    obstacle = _first_obstacle(seen)
    if obstacle and obstacle.holds is None and not seen.existing:
        return obstacle
    promised = max(seen.desired - 1, 1) if seen.promised is None else seen.promised
    answer = "replica answers" if seen.ready == 1 else "replicas answer"
    told = f"{seen.ready} {answer}, at least {promised} must"
    if seen.ready >= promised:
        return holds("MinimumReplicasAvailable", told)
    return fails("MinimumReplicasUnavailable", told)


_ON_THE_WAY = frozenset({"Starting", "Updating", "ScalingDown", "Exposing"})
"""Reasons of `_workers` that need nobody's attention."""


def _on_the_way(obstacle: Finding) -> bool:
    return obstacle.holds is None or obstacle.reason in _ON_THE_WAY


def _progressing(seen: Observation) -> Finding:
    """True while the operator or a kubelet brings about what is wanted; False when that is done or stuck."""
    if off := _off(seen):
        return holds("Stopping", f"{seen.existing} replicas are stopping") if seen.existing else off
    obstacle = _first_obstacle(seen)
    if obstacle is None:
        return fails("Complete", "all replicas run this generation")
    if seen.given_up:
        return fails("RestartBudgetExhausted", obstacle.message)
    failing = bool(seen.failures) and obstacle == _failing(seen)
    what = f"{seen.rollout.message}; {obstacle.message}" if seen.rollout else obstacle.message
    if seen.late and (failing or _on_the_way(obstacle)):
        return fails("ProgressDeadlineExceeded", f"{seen.late}; trying goes on: {what}")
    if failing:
        return holds("Restarting", what)
    if _on_the_way(obstacle):
        return holds(seen.rollout.reason if seen.rollout else obstacle.reason, what)
    return fails(obstacle.reason, what)


def _degraded(seen: Observation) -> Finding:
    """True when something needs attention: a step failed, or a worker did."""
    off = _off(seen)
    obstacle = _first_obstacle(seen)
    if obstacle and obstacle != off and obstacle.holds is False and obstacle.reason not in _ON_THE_WAY:
        return holds(obstacle.reason, obstacle.message)
    if off is None and (seen.failures or seen.given_up) and seen.ready < seen.desired:
        failing = _failing(seen)
        return holds(failing.reason, failing.message)
    if off is None and seen.away:
        away = _told(seen.away)
        return holds(away.reason, away.message)
    if off is None and seen.taken:
        return holds("NameTaken", seen.taken)
    if off is None and seen.late and obstacle and _on_the_way(obstacle):
        return holds("ProgressDeadlineExceeded", f"{seen.late}; trying goes on: {obstacle.message}")
    if obstacle and obstacle.holds is None and not seen.existing:
        return obstacle
    return fails("AsExpected", "")


# --- wording --------------------------------------------------------------------------------------

_STATUS: dict[bool | None, Literal["True", "False", "Unknown"]] = {
    True: "True",
    False: "False",
    None: "Unknown",
}

FOUND = {status: found for found, status in _STATUS.items()}
"""What a condition's status says of its step."""


def _dated(
    found: dict[ConditionType, Finding], generation: int, previous: Iterable[Condition], now: datetime
) -> list[Condition]:
    before = {condition.type: condition for condition in previous}
    timestamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    dated = []
    for kind, finding in found.items():
        status = _STATUS[finding.holds]
        old = before.get(kind.value)
        dated.append(
            Condition(
                type=kind.value,
                status=status,
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old and old.status == status else timestamp,
                reason=_word(finding.reason),
                message=_shortened(finding.message),
            )
        )
    return dated


def _word(reason: str) -> str:
    """`reason` as the API server takes it: a kubelet's or scheduler's odd word must not stop the status."""
    word = re.sub(r"[^A-Za-z0-9_]", "", reason).lstrip("0123456789_")[:1024]
    return word or "Failed"


def _shortened(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
