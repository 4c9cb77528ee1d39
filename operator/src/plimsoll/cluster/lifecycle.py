"""One resource, one step: from everything observed of it to what to do about it. Pure.

    parse → model (inspection) → revision → plan → pods (replicas) → Services → status

The order of the actions is the order of what must survive: the revision and the status are written before any
pod, so an operator killed at any point finds the decision in the API and goes on; names follow from the
decision, so going on never makes a second set.
"""

from __future__ import annotations

from dataclasses import replace

from plimsoll.actuate import services
from plimsoll.actuate.diff import compare
from plimsoll.actuate.revisions import Revision, wanted_revision
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, LLMDeploymentStatus, PlanMode, PlanStatus
from plimsoll.cluster.inspection import Inspection, inspect_model
from plimsoll.cluster.observed import (
    Action,
    ApplyService,
    DeleteRevision,
    Memory,
    Observed,
    Outcome,
    WriteRevision,
    WriteStatus,
    soonest,
)
from plimsoll.cluster.replicas import Replicas, leave_alone, reconcile_replicas
from plimsoll.cluster.status import compose_status
from plimsoll.cluster.targets import Target, choose_target
from plimsoll.cluster.transitions import events
from plimsoll.planning.candidates import worker_requests


def wanted(observed: Observed, inspection: Inspection) -> Revision | None:
    """The revision that this generation wants; None while its model is not known."""
    if inspection.facts is None or observed.resource.spec is None:
        return None
    resource = observed.resource
    return wanted_revision(
        resource.owner, observed.resource.spec, inspection.facts, observed.revisions, observed.worker_image
    )


def next_actions(observed: Observed) -> Outcome:
    """What to do now, in order, and when to look again."""
    resource = observed.resource
    if resource.deleting:
        # Everything is owned by the resource: the garbage collector is at work, and must not be raced.
        return Outcome((), observed.memory)
    if resource.spec is None:
        status = compose_status(observed, None, choose_target(observed, None), leave_alone(observed))
        return Outcome(tuple(_write(observed, status)), observed.memory)
    inspection = inspect_model(observed)
    revision = wanted(observed, inspection)
    target = choose_target(observed, revision)
    replicas = _replicas(observed, resource.spec, revision, target)
    status = compose_status(observed, inspection, target, replicas)
    actions: list[Action] = []
    if revision and revision not in observed.revisions:
        actions.append(WriteRevision(revision))
    actions += _write(observed, status)
    actions += inspection.deletes
    actions += inspection.creates
    actions += replicas.deletes
    actions += replicas.creates
    if revision and resource.spec.plan.mode is PlanMode.APPLY:
        actions += _services(observed, resource.spec)
    actions += _stale_revisions(observed, revision, target)
    actions += events(resource.status, status, replicas.creates)
    return Outcome(
        actions=tuple(actions),
        memory=_remember(observed, inspection, replicas),
        wake_at=soonest(
            inspection.wake_at,
            replicas.wake_at,
            *(exclusion.until for exclusion in observed.memory.exclusions),
        ),
    )


def _replicas(
    observed: Observed, spec: LLMDeploymentSpec, revision: Revision | None, target: Target
) -> Replicas:
    plan: PlanStatus | None = target.plan
    requests = worker_requests(plan, revision.spec, revision.facts) if plan and revision else None
    running = not spec.suspend and spec.plan.mode is PlanMode.APPLY and spec.replicas > 0
    return reconcile_replicas(observed, plan, revision, requests, running=running)


def _write(observed: Observed, status: LLMDeploymentStatus) -> list[Action]:
    return [] if status.to_dict() == dict(observed.resource.raw_status) else [WriteStatus(status)]


def _services(observed: Observed, spec: LLMDeploymentSpec) -> list[Action]:
    actions: list[Action] = []
    owner = observed.resource.owner
    for body in (services.service(owner, spec), services.headless_service(owner)):
        found = observed.services.get(body["metadata"]["name"])
        difference = compare({"metadata": body["metadata"], "spec": body["spec"]}, found or {})
        if not difference.equal:
            actions.append(ApplyService(body, difference.first if found else "it is missing"))
    return actions


def _stale_revisions(observed: Observed, revision: Revision | None, target: Target) -> list[Action]:
    """Those that no plan, no pod and not this generation needs."""
    if revision is None:
        return []
    needed = {revision.name, *(plan.revision for plan in target.plans)}
    needed |= {pod.revision for pod in observed.worker_pods}
    return [DeleteRevision(old.name) for old in observed.revisions if old.name not in needed]


def _remember(observed: Observed, inspection: Inspection, replicas: Replicas) -> Memory:
    memory = observed.memory
    kept = tuple(exclusion for exclusion in memory.exclusions if exclusion.until > observed.now)
    return replace(
        memory,
        inspection=inspection.memory,
        exclusions=kept + replicas.exclusions,
        attempts=replicas.attempts,
        refusal=None if replicas.complete else memory.refusal,
    )
