"""Events: what changed between the status that was and the status that is, in words for `kubectl describe`.

They are derived from the difference that was just written, so each is told once, also by an operator that is
restarted in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from plimsoll.actuate.ownership import REVISION
from plimsoll.api.v1alpha1 import Condition, LLMDeploymentStatus, ReplicaStatus
from plimsoll.cluster.course import Manner
from plimsoll.cluster.observed import CreatePod, EmitEvent
from plimsoll.cluster.silence import NODE_NOT_READY
from plimsoll.inventory.selectors import pinned_node

TOLD_MANNERS = {Manner.SURGE.value, Manner.RECREATE.value, "ProgressDeadlineExceeded"}


def events(
    before: LLMDeploymentStatus, after: LLMDeploymentStatus, creates: Iterable[CreatePod]
) -> tuple[EmitEvent, ...]:
    """Events of one step, in the order of the story."""
    return (
        *_model(before, after),
        *_plan(before, after, [create for create in creates if create.pinned]),
        *_failures(before.replica_statuses, after.replica_statuses),
        *_rollout(before, after),
        *_readiness(before, after),
    )


def _model(before: LLMDeploymentStatus, after: LLMDeploymentStatus) -> Iterator[EmitEvent]:
    was, now = _find(before, "ModelResolved"), _find(after, "ModelResolved")
    if now and _flipped(was, now):
        # A model that was known before the resource came is nothing that happened.
        if now.status == "True" and was:
            yield EmitEvent("ModelResolved", now.message)
        elif now.status == "False":
            yield EmitEvent("ModelFailed", f"{now.reason}: {now.message}", warning=True)


def _plan(
    before: LLMDeploymentStatus, after: LLMDeploymentStatus, creates: Sequence[CreatePod]
) -> Iterator[EmitEvent]:
    """What was decided and the pods of that in one event: each is a write. Pods that come later have one of
    their own."""
    known = {(plan.revision, plan.id) for plan in before.plans}
    new = [plan for plan in after.plans if (plan.revision, plan.id) not in known]
    for plan in new:
        pods = _pods(create for create in creates if _revision(create) == plan.revision)
        yield EmitEvent("Planned", ": ".join(filter(None, (f"{plan.summary} (plan {plan.id})", pods))))
    told = {plan.revision for plan in new}
    if pods := _pods(create for create in creates if _revision(create) not in told):
        yield EmitEvent("ReplicaCreated", pods)
    was, now = _find(before, "Planned"), _find(after, "Planned")
    if now and now.status == "False" and _flipped(was, now):
        yield EmitEvent("PlanRejected", f"{now.reason}: {now.message}", warning=True)


def _pods(creates: Iterable[CreatePod]) -> str:
    return ", ".join(
        f"pod {create.name} on node {pinned_node(create.body['spec']['affinity'])}" for create in creates
    )


def _revision(create: CreatePod) -> str:
    return str(create.body["metadata"]["labels"][REVISION])


def _failures(before: Iterable[ReplicaStatus], after: Iterable[ReplicaStatus]) -> Iterator[EmitEvent]:
    known = {(status.revision, status.replica): status for status in before}
    for status in after:
        failure, was = status.last_failure, known.get((status.revision, status.replica))
        if failure and failure != (was.last_failure if was else None):
            yield EmitEvent(
                "ReplicaFailed", f"pod {failure.pod}: {failure.reason}: {failure.message}", warning=True
            )
        if status.given_up and not (was and was.given_up):
            yield EmitEvent(
                "RestartBudgetExhausted",
                f"replica {status.replica} is given up after {status.restarts} restarts",
                warning=True,
            )


def _rollout(before: LLMDeploymentStatus, after: LLMDeploymentStatus) -> Iterator[EmitEvent]:
    """How replicas will be replaced, and what planning leaves out from now on."""
    was, now = _find(before, "Progressing"), _find(after, "Progressing")
    if now and _flipped(was, now) and now.reason in TOLD_MANNERS:
        yield EmitEvent(now.reason, now.message, warning=now.status == "False")
    known = {(one.node, one.configuration, one.basis) for one in before.exclusions}
    for one in after.exclusions:
        if (one.node, one.configuration, one.basis) not in known:
            what = f"node {one.node}" if one.node else one.configuration
            yield EmitEvent("Excluded", f"{what}: {one.reason}: {one.message}", warning=True)


def _readiness(before: LLMDeploymentStatus, after: LLMDeploymentStatus) -> Iterator[EmitEvent]:
    was, now = _find(before, "Ready"), _find(after, "Ready")
    if now and now.status == "True" and _flipped(was, now):
        yield EmitEvent("Ready", now.message)
    was, now = _find(before, "Degraded"), _find(after, "Degraded")
    if now and now.reason in (NODE_NOT_READY, "NameTaken") and _flipped(was, now):
        yield EmitEvent(now.reason, now.message, warning=True)
    was, now = _find(before, "Verified"), _find(after, "Verified")
    if now and now.status == "False" and _flipped(was, now):
        yield EmitEvent(now.reason, now.message, warning=True)


def _find(status: LLMDeploymentStatus, kind: str) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == kind), None)


def _flipped(was: Condition | None, now: Condition) -> bool:
    return was is None or (was.status, was.reason) != (now.status, now.reason)
