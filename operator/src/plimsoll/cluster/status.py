"""Composes the whole status of a resource, in this one place.

Status written piece by piece, wherever something happens, was rejected: pieces contradict each other. The
whole is compared with what the API server has, and written only when it differs.
"""

from __future__ import annotations

from plimsoll.actuate import services
from plimsoll.actuate.ownership import selector_text, worker_selector
from plimsoll.actuate.revisions import Revision
from plimsoll.api.conditions import PLANNING, Finding, Observation, conditions, fails, holds, pending
from plimsoll.api.v1alpha1 import (
    LLMDeploymentStatus,
    ModelStatus,
    PlanMode,
    PlanStatus,
    RejectedOption,
)
from plimsoll.cluster.course import Manner
from plimsoll.cluster.exclusions import left_out, remembered
from plimsoll.cluster.exposure import has_services, taken
from plimsoll.cluster.headcount import Replicas
from plimsoll.cluster.inspection import Inspection, Resolution
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.progress import last_progress, lateness
from plimsoll.cluster.startup import startup
from plimsoll.cluster.targets import Target
from plimsoll.cluster.verification import measured, verify
from plimsoll.cluster.wanted import held_revision, is_held_back
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.kv_cache import bytes_per_token
from plimsoll_worker.launch import Precision

PLANNED_AGAIN = "planned again whenever nodes, pods or the spec change"


def compose_status(
    observed: Observed,
    inspection: Inspection | None,
    revision: Revision | None,
    target: Target,
    replicas: Replicas,
) -> LLMDeploymentStatus:
    """The status as it should be. `inspection` None: the spec does not parse. `revision`: the wanted one."""
    resource = observed.resource
    spec, owner, before = resource.spec, resource.owner, resource.status
    serves = spec is not None and inspection is not None and inspection.facts is not None
    url = services.url(owner, spec) if spec and serves and spec.plan.mode is PlanMode.APPLY else ""
    progressed = last_progress(observed, target, replicas)
    seen = Observation(
        generation=resource.generation,
        desired=spec.replicas if spec else 0,
        existing=replicas.existing,
        ready=replicas.ready,
        updated=replicas.updated,
        due=_due(observed, target),
        updated_scheduled=replicas.updated_scheduled,
        updated_ready=replicas.updated_ready,
        invalid=resource.problem,
        suspended=bool(spec and spec.suspend),
        plan_only=bool(spec and spec.plan.mode is PlanMode.PLAN_ONLY),
        model=_model(inspection),
        plan=_plan(observed, target.plan, left_out(observed.exclusions, revision)),
        unschedulable=replicas.unschedulable,
        refused=observed.memory.refusal.message if observed.memory.refusal else "",
        starting=replicas.starting,
        failures=replicas.failures,
        given_up=replicas.given_up,
        away=replicas.away,
        rollout=_rollout(observed),
        held=_held(observed, inspection),
        late=lateness(observed, inspection, progressed),
        taken=taken(observed, spec, target) if url and spec else "",
        exposed=not url or spec is None or has_services(observed, spec, target),
        verified=verify(observed, target.plan),
        url=url,
    )
    return LLMDeploymentStatus(
        observed_generation=resource.generation,
        replicas=replicas.existing,
        ready_replicas=replicas.ready,
        updated_replicas=replicas.updated,
        updated_ready_replicas=replicas.updated_ready,
        selector=selector_text(worker_selector(owner)),
        url=url,
        current_revision=target.current_revision,
        update_revision=target.update_revision,
        model=_model_status(inspection, target.plan) or (before.model if not inspection else None),
        plans=list(target.plans),
        rejected=_rejected(observed),
        measured=measured(observed, target.plan),
        startup=startup(observed, target.plan),
        replica_statuses=list(replicas.statuses),
        exclusions=remembered((*observed.exclusions, *replicas.exclusions), revision),
        retried=resource.retry or before.retried,
        last_progress_time=progressed,
        conditions=conditions(seen, before.conditions, now=observed.now),
    )


def _model(inspection: Inspection | None) -> Finding:
    if inspection is None:
        return pending("InvalidSpec", "the spec does not parse")
    if inspection.facts:
        facts = inspection.facts
        size = f"{facts.parameters} parameters in {facts.layer_count} layers"
        return holds("HeadersRead", f"{facts.architecture}, {size}, {facts.format}")
    if inspection.resolution is Resolution.FAILED:
        return fails(inspection.reason, inspection.message)
    return pending(inspection.reason, inspection.message)


def _plan(observed: Observed, plan: PlanStatus | None, excluded: str) -> Finding:
    course = observed.course
    if course is None or course.decision is None:
        return PLANNING
    if course.rejection:
        return fails(course.rejection.reason, f"{course.rejection.message}{excluded}; {PLANNED_AGAIN}")
    return holds("Planned", plan.summary + excluded) if plan else PLANNING


def _due(observed: Observed, target: Target) -> int | None:
    if _rollout(observed) is None or target.plan is None:
        return None
    return len({place.replica for place in target.plan.placements})


def _rollout(observed: Observed) -> Finding | None:
    course = observed.course
    if course is None or course.manner is Manner.STEADY:
        return None
    return holds(course.manner.value, course.message)


def _held(observed: Observed, inspection: Inspection | None) -> str:
    held = held_revision(observed)
    if held is None or inspection is None or not is_held_back(observed, inspection):
        return ""
    return (
        f"plan.replan is Manual: revision {held.name} stays until the annotation plimsoll.dev/replan has a "
        "new value"
    )


def _rejected(observed: Observed) -> list[RejectedOption]:
    rejection = observed.course.rejection if observed.course else None
    return list(rejection.rejected) if rejection else []


def _model_status(inspection: Inspection | None, plan: PlanStatus | None) -> ModelStatus | None:
    facts: ModelFacts | None = inspection.facts if inspection else None
    if facts is None:
        return None
    return ModelStatus(
        architecture=facts.architecture,
        revision=facts.revision,
        parameters=facts.parameters,
        checkpoint_bytes=facts.checkpoint_bytes,
        kv_bytes_per_token=bytes_per_token(facts, plan.kv_cache if plan else Precision.BF16),
        max_position=facts.max_position,
    )
