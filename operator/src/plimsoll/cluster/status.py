"""Composes the whole status of a resource, in this one place.

Status written piece by piece, wherever something happens, was rejected: pieces contradict each other. The
whole is compared with what the API server has, and written only when it differs.
"""

from __future__ import annotations

from plimsoll.actuate import services
from plimsoll.actuate.ownership import selector_text, worker_selector
from plimsoll.api.conditions import PLANNING, Finding, Observation, conditions, fails, holds, pending
from plimsoll.api.v1alpha1 import LLMDeploymentStatus, ModelStatus, PlanMode, PlanStatus, RejectedOption
from plimsoll.cluster.inspection import Inspection, Resolution
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import stamp
from plimsoll.cluster.replicas import Replicas
from plimsoll.cluster.targets import Target
from plimsoll.cluster.verification import measured, verify
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.kv_cache import bytes_per_token
from plimsoll_worker.launch import Precision


def compose_status(
    observed: Observed, inspection: Inspection | None, target: Target, replicas: Replicas
) -> LLMDeploymentStatus:
    """The status as it should be. `inspection` None: the spec does not parse."""
    resource = observed.resource
    spec, owner, before = resource.spec, resource.owner, resource.status
    serves = spec is not None and inspection is not None and inspection.facts is not None
    url = services.url(owner, spec) if spec and serves and spec.plan.mode is PlanMode.APPLY else ""
    seen = Observation(
        generation=resource.generation,
        desired=spec.replicas if spec else 0,
        existing=replicas.existing,
        ready=replicas.ready,
        updated=replicas.updated,
        updated_scheduled=replicas.updated_scheduled,
        updated_ready=replicas.updated_ready,
        invalid=resource.problem,
        suspended=bool(spec and spec.suspend),
        plan_only=bool(spec and spec.plan.mode is PlanMode.PLAN_ONLY),
        model=_model(inspection),
        plan=_plan(observed, target.plan),
        unschedulable=replicas.unschedulable,
        refused=observed.memory.refusal.message if observed.memory.refusal else "",
        failures=replicas.failures,
        verified=verify(observed, target.plan),
        url=url,
    )
    return LLMDeploymentStatus(
        observed_generation=resource.generation,
        replicas=replicas.existing,
        ready_replicas=replicas.ready,
        updated_replicas=replicas.updated,
        selector=selector_text(worker_selector(owner)),
        url=url,
        current_revision=target.current_revision,
        update_revision=target.update_revision,
        model=_model_status(inspection, target.plan) or (before.model if not inspection else None),
        plans=list(target.plans),
        rejected=_rejected(observed),
        measured=measured(observed, target.plan),
        replica_statuses=list(replicas.statuses),
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


def _plan(observed: Observed, plan: PlanStatus | None) -> Finding:
    decision = observed.decision
    if decision is None:
        return PLANNING
    if decision.rejection:
        excluded = "".join(
            f"; node {exclusion.node} is left out until {stamp(exclusion.until)}: {exclusion.message}"
            for exclusion in observed.memory.exclusions
            if exclusion.until > observed.now
        )
        return fails(decision.rejection.reason, decision.rejection.message + excluded)
    return holds("Planned", plan.summary) if plan else PLANNING


def _rejected(observed: Observed) -> list[RejectedOption]:
    rejection = observed.decision.rejection if observed.decision else None
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
