"""One resource, one step: from everything observed of it to what to do about it. Pure.

    parse → model (inspection) → revision → plan → pods (replicas) → Services → status

The order of the actions is the order of what must survive: the revision and the status are written before any
pod, so an operator killed at any point finds the decision in the API and goes on; names follow from the
decision, so going on never makes a second set.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, LLMDeploymentStatus, PlanMode
from plimsoll.cluster.exposure import exposure
from plimsoll.cluster.headcount import Replicas
from plimsoll.cluster.inspection import Inspection, inspect_model
from plimsoll.cluster.observed import (
    Action,
    DeleteRevision,
    Memory,
    Observed,
    Outcome,
    WriteRevision,
    WriteStatus,
    soonest,
)
from plimsoll.cluster.own_pods import at
from plimsoll.cluster.progress import deadline
from plimsoll.cluster.replicas import reconcile_replicas
from plimsoll.cluster.status import compose_status
from plimsoll.cluster.targets import Target, choose_target
from plimsoll.cluster.transitions import events
from plimsoll.cluster.wanted import wanted

EXPOSED_WITHIN = timedelta(seconds=1)
"""Services follow what is planned, and their arrival wakes nobody; Ready waits for them."""


def next_actions(observed: Observed) -> Outcome:
    """What to do now, in order, and when to look again."""
    resource = observed.resource
    if resource.deleting:
        # Everything is owned by the resource: the garbage collector is at work, and must not be raced.
        return Outcome((), observed.memory)
    if resource.spec is None:
        target = choose_target(observed, None)
        replicas = reconcile_replicas(observed, target, None, running=True)
        status = compose_status(observed, None, None, target, replicas)
        return Outcome(tuple(_write(observed, status)), observed.memory)
    inspection = inspect_model(observed)
    revision = wanted(observed, inspection)
    target = choose_target(observed, revision)
    replicas = reconcile_replicas(observed, target, revision, running=_runs(resource.spec))
    status = compose_status(observed, inspection, revision, target, replicas)
    actions: list[Action] = []
    if revision and revision not in observed.revisions:
        actions.append(WriteRevision(revision))
    actions += _write(observed, status)
    actions += inspection.deletes
    actions += inspection.creates
    actions += replicas.deletes
    actions += replicas.creates
    actions += replicas.opens
    exposed = exposure(observed, resource.spec, target) if revision and _applies(resource.spec) else []
    actions += exposed
    actions += _stale_revisions(observed, revision, target)
    actions += events(resource.status, status, replicas.creates)
    return Outcome(
        actions=tuple(actions),
        memory=_remember(observed, inspection, replicas),
        wake_at=soonest(
            inspection.wake_at,
            replicas.wake_at,
            deadline(observed, inspection, status),
            observed.now + EXPOSED_WITHIN if exposed else None,
            *(at(exclusion.until) for exclusion in status.exclusions if exclusion.until),
        ),
    )


def _applies(spec: LLMDeploymentSpec) -> bool:
    return spec.plan.mode is PlanMode.APPLY


def _runs(spec: LLMDeploymentSpec) -> bool:
    return _applies(spec) and not spec.suspend and spec.replicas > 0


def _write(observed: Observed, status: LLMDeploymentStatus) -> list[Action]:
    return [] if status.to_dict() == dict(observed.resource.raw_status) else [WriteStatus(status)]


def _stale_revisions(observed: Observed, revision: Revision | None, target: Target) -> list[Action]:
    """Those that no plan, no pod and not this generation needs."""
    if revision is None:
        return []
    needed = {revision.name, *(plan.revision for plan in (*target.plans, *target.older))}
    needed |= {pod.revision for pod in observed.worker_pods}
    return [DeleteRevision(old.name) for old in observed.revisions if old.name not in needed]


def _remember(observed: Observed, inspection: Inspection, replicas: Replicas) -> Memory:
    memory = observed.memory
    return replace(
        memory,
        inspection=inspection.memory,
        attempts=replicas.attempts,
        refusal=None if replicas.complete else memory.refusal,
    )
