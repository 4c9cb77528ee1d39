"""Holds what workers report against what was planned: effective configuration, and bytes by category.

A report that cannot be read is told (which port, from where) and nothing more: the worker checked itself
before it turned ready, so a closed network never takes a serving deployment down. Reports are input from
outside: they were parsed strictly, and nothing in them is used but numbers and enums.
"""

from __future__ import annotations

from collections.abc import Iterable

from plimsoll.api.conditions import AWAITING_REPORT, FOUND, ConditionType, Finding, fails, holds, pending
from plimsoll.api.v1alpha1 import Condition, MeasuredStage, PlanStatus
from plimsoll.cluster.observed import Observed, ReportAnswer
from plimsoll.cluster.own_pods import OwnPod, at
from plimsoll_worker.launch import ADMIN_PORT, DeviceReport, Report

LEFT_ALONE = (
    "it goes on as it is, and nothing is learned from it; delete the pod to have its replica started anew"
)


def verify(observed: Observed, plan: PlanStatus | None) -> Finding:
    """The Verified condition over all ready workers of the plan."""
    answers = [
        (pod, answer)
        for pod in _ready(observed, plan)
        if (answer := observed.reports.get(pod.uid)) is not None
    ]
    assert plan is not None or not answers
    for pod, answer in answers:
        if plan and answer.report and (difference := mismatch(plan, pod.stage, answer.report)):
            told = f"pod {pod.name}: {difference}; {LEFT_ALONE}"
            return fails("EffectiveConfigMismatch", told)
    for pod, answer in answers:
        if answer.report is None:
            return pending("ReportUnreachable", _unreachable(pod, answer, observed.operator_namespace))
    if not answers:
        known = _found_before(observed, plan)
        return Finding(FOUND[known.status], known.reason, known.message) if known else AWAITING_REPORT
    told = "the worker runs" if len(answers) == 1 else f"{len(answers)} workers run"
    return holds("ReportsAgree", f"{told} what was planned")


def _ready(observed: Observed, plan: PlanStatus | None) -> list[OwnPod]:
    return [pod for pod in observed.worker_pods if plan and pod.revision == plan.revision and pod.ready]


def _found_before(observed: Observed, plan: PlanStatus | None) -> Condition | None:
    """What status says of a worker that is ready since then. A restarted operator has asked nobody yet; what
    the one before it read is not forgotten until somebody is asked again."""
    status = observed.resource.status
    known = next((one for one in status.conditions if one.type == ConditionType.VERIFIED), None)
    if known is None or plan is None or status.update_revision != plan.revision:
        return None
    since = at(known.last_transition_time)
    asked = any(pod.ready_since and at(pod.ready_since) <= since for pod in _ready(observed, plan))
    return known if asked else None


def _unreachable(pod: OwnPod, answer: ReportAnswer, namespace: str) -> str:
    return (
        f"pod {pod.name}: {answer.problem}; allow TCP port {ADMIN_PORT} of worker pods from namespace "
        f"{namespace} to have reports read; it is asked again with growing pauses. Serving is not affected"
    )


def mismatch(plan: PlanStatus, stage: int, report: Report) -> str:
    """The first difference in words; empty when the worker runs the plan."""
    pairs = (
        # An address is given to another pod soon after its owner went.
        ("revision", plan.revision, report.revision),
        ("device", plan.device, report.device),
        ("weights", plan.weights, report.weights.name),
        ("checkpoint format", plan.checkpoint_format or "none", report.weights.checkpoint or "none"),
        ("KV cache", plan.kv_cache, report.kv_cache),
        ("tensor parallel", plan.tensor_parallel, report.tensor_parallel),
        ("pipeline parallel", plan.pipeline_parallel, report.pipeline_parallel),
        ("stage", stage, report.stage),
        ("longest context", plan.max_context_tokens, report.max_context_tokens),
    )
    return next(
        (f"{what}: planned {wanted}, runs {found}" for what, wanted, found in pairs if wanted != found), ""
    )


def measured(observed: Observed, plan: PlanStatus | None) -> list[MeasuredStage]:
    """The worst rank of each stage over all replicas of the plan; what was measured before, while nobody has
    been asked since the operator started."""
    worst: dict[int, tuple[DeviceReport, Report]] = {}
    for pod in _ready(observed, plan):
        answer = observed.reports.get(pod.uid)
        if answer is None or answer.report is None or not answer.report.devices:
            continue
        device = max(answer.report.devices, key=lambda found: (found.bytes.total, -found.rank))
        if pod.stage not in worst or device.bytes.total > worst[pod.stage][0].bytes.total:
            worst[pod.stage] = device, answer.report
    assert plan is not None or not worst
    if not worst and _found_before(observed, plan):
        return list(observed.resource.status.measured)
    return [_stage(plan, stage, *found) for stage, found in sorted(worst.items()) if plan]


def _stage(plan: PlanStatus, stage: int, device: DeviceReport, report: Report) -> MeasuredStage:
    predicted = sum(memory.total for memory in plan.memory if memory.stage == stage)
    total = device.bytes.total
    return MeasuredStage(
        stage=stage,
        bytes=device.bytes,
        kv_cache_tokens=report.kv_cache_tokens,
        device=report.device,
        weights=report.weights.name,
        tensor_parallel=report.tensor_parallel,
        pipeline_parallel=report.pipeline_parallel,
        error_permille=(predicted - total) * 1000 // total if total > 0 else 0,
    )


def unread(pods: Iterable[OwnPod]) -> list[OwnPod]:
    """The pods whose report can be asked for."""
    return [pod for pod in pods if pod.ready and pod.address and not pod.terminating]
