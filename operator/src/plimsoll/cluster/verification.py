"""Holds what workers report against what was planned: effective configuration, and bytes by category.

A report that cannot be read is told (which port, from where) and nothing more: the worker checked itself
before it turned ready, so a closed network never takes a serving deployment down. Reports are input from
outside: they were parsed strictly, and nothing in them is used but numbers and enums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plimsoll.api.conditions import AWAITING_REPORT, FOUND, ConditionType, Finding, fails, holds, pending
from plimsoll.api.v1alpha1 import Condition, MeasuredStage, PlanStatus
from plimsoll.cluster.observed import Observed, ReportAnswer
from plimsoll.cluster.own_pods import OwnPod
from plimsoll_worker.launch import ADMIN_PORT, DeviceReport, Report

LEFT_ALONE = (
    "it goes on as it is, and nothing is learned from it; delete the pod to have its replica started anew"
)


def verify(observed: Observed, plan: PlanStatus | None) -> Finding:
    """The Verified condition over all ready workers of the plan: it holds when each of them has been read."""
    ready = _ready(observed, plan)
    answers = [(pod, answer) for pod in ready if (answer := observed.reports.get(pod.uid)) is not None]
    for pod, answer in answers:
        if plan and answer.report and (difference := mismatch(plan, pod.stage, answer.report)):
            told = f"pod {pod.name}: {difference}; {LEFT_ALONE}"
            return fails("EffectiveConfigMismatch", told)
    for pod, answer in answers:
        if answer.report is None:
            return pending("ReportUnreachable", _unreachable(pod, answer, observed.operator_namespace))
    if known := _found_before(observed, plan):
        return Finding(FOUND[known.status], known.reason, known.message)
    if not answers:
        return AWAITING_REPORT
    if silent := [pod for pod in ready if pod.uid not in observed.reports]:
        return pending(AWAITING_REPORT.reason, _awaited(silent, len(ready)))
    told = "the worker runs" if len(answers) == 1 else f"{len(answers)} workers run"
    return holds("ReportsAgree", f"{told} what was planned")


def _ready(observed: Observed, plan: PlanStatus | None) -> list[OwnPod]:
    """The workers of the plan that are asked."""
    return [pod for pod in unread(observed.worker_pods) if plan and pod.revision == plan.revision]


def _found_before(observed: Observed, plan: PlanStatus | None) -> Condition | None:
    """What status says, where it speaks of everybody who has not been read. A restarted operator has asked
    nobody yet, and answers come one after the other: what the one before it read is not forgotten until all
    of them have been read again."""
    status = observed.resource.status
    known = next((one for one in status.conditions if one.type == ConditionType.VERIFIED), None)
    silent = [pod for pod in _ready(observed, plan) if pod.uid not in observed.reports]
    if known is None or known.reason == AWAITING_REPORT.reason or plan is None or not silent:
        return None
    told = status.update_revision == plan.revision and all(map(observed.is_told, silent))
    return known if told else None


def _awaited(silent: Sequence[OwnPod], ready: int) -> str:
    more = f" and of {len(silent) - 1} more" if len(silent) > 1 else ""
    said = f"{ready - len(silent)} of {ready} workers have reported"
    return f"{said}; the report of pod {silent[0].name}{more} is awaited"


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
    """The worst rank of each stage over all replicas of the plan; what was measured before, until all have
    been asked since the operator started."""
    if _found_before(observed, plan):
        return list(observed.resource.status.measured)
    worst: dict[int, tuple[DeviceReport, Report]] = {}
    for pod in _ready(observed, plan):
        answer = observed.reports.get(pod.uid)
        if answer is None or answer.report is None or not answer.report.devices:
            continue
        device = max(answer.report.devices, key=lambda found: (found.bytes.total, -found.rank))
        if pod.stage not in worst or device.bytes.total > worst[pod.stage][0].bytes.total:
            worst[pod.stage] = device, answer.report
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
