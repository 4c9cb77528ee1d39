"""What the operator learns from reports and from workers that ran out of memory: MemoryProfiles. Pure.

    ready workers' reports ─┐
    out-of-memory endings ──┼─→ learn() ─→ MemoryProfiles to write, and those to forget
    stored MemoryProfiles ──┘

A report comes from a pod that its user controls. So only pods that run the operator's own engine image,
without environment of the user's, are believed; what ran is told by the plan and the revision, never by the
report; and a profile speaks to its own namespace alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.api.v1alpha1.profile import Fingerprint, MemoryProfileSpec, MemoryProfileStatus
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import OwnPod, at, stamp
from plimsoll.cluster.stored_profile import Key, Profile
from plimsoll.cluster.targets import plans_in_force
from plimsoll.cluster.verification import mismatch
from plimsoll.inventory.views import NodeView
from plimsoll_worker.launch import CAPABILITIES, ExitCode, ExitReason, MeasuredMemory, Report

LIFETIME = timedelta(days=30)
"""A profile that nobody observed for so long is forgotten."""
REFRESH = timedelta(days=1)
"""How much older the last observation must be before the expiry alone is worth a write."""
AGREE_BYTES = 64 << 20
AGREE_PERCENT = 2
"""Two ledgers agree when each category differs by less than either."""
TRUSTED_AFTER = 2
"""Ledgers that agree, of different runs, before the margin goes."""
OUT_OF_MEMORY_PERCENT = 2
"""Of the stage's line, more margin after each time that memory ran out."""
OUT_OF_MEMORY = frozenset({ExitCode.CUDA_OUT_OF_MEMORY, ExitCode.MEMORY_ESTIMATE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one run of one worker says."""

    fingerprint: Fingerprint
    namespace: str
    run: str
    """Uid of the pod, and how often its container had restarted."""
    line: int
    predicted: int
    """What the plan counted on for the stage, bytes."""
    report: Report | None
    """None: it ran out of memory."""

    @property
    def key(self) -> Key:
        return self.namespace, profile_name(self.fingerprint)

    @property
    def ledger(self) -> MeasuredMemory:
        """Of the fullest rank."""
        assert self.report is not None, "a worker that ran out of memory left no ledger"
        return max(self.report.devices, key=lambda device: device.bytes.total).bytes


def profile_name(fingerprint: Fingerprint) -> str:
    """The name of the object: the same fingerprint is the same object."""
    told = fingerprint.model_dump_json()
    return f"{fingerprint.architecture[:20].rstrip('-_.')}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def learn(
    observed: Iterable[Observed],
    stored: Mapping[Key, Profile],
    nodes: Mapping[str, NodeView],
    now: datetime,
) -> tuple[list[Profile], list[Profile]]:
    """(to write, to forget). Equal inputs give equal answers, and what is known already asks for no write."""
    lessons: dict[Key, list[Lesson]] = defaultdict(list)
    for lesson in _lessons(observed, nodes):
        lessons[lesson.key].append(lesson)
    changed: dict[Key, Profile] = {}
    for key, told in sorted(lessons.items()):
        spec = MemoryProfileSpec(fingerprint=told[0].fingerprint)
        before = stored.get(key) or Profile(*key, spec)
        if before.spec != spec:
            # Somebody wrote another fingerprint under this name; it is not ours to mend.
            continue
        after = _measured(_ran_out_again(before.status, told, now), told, now)
        if after != before.status:
            changed[key] = replace(before, status=after)
    expired = [
        one
        for key, one in stored.items()
        if key not in changed and one.status.expiry_time and at(one.status.expiry_time) <= now
    ]
    return list(changed.values()), expired


def trusted(revision: Revision, own_image: str) -> bool:
    """Whether what workers of the revision say may be kept: they run the operator's own image, as it is."""
    template = revision.spec.pod_template
    return (
        bool(own_image)
        and revision.worker_image == own_image
        and not revision.spec.engine.image
        and not template.env
        and not template.runtime_class_name
    )


def _lessons(observed: Iterable[Observed], nodes: Mapping[str, NodeView]) -> Iterator[Lesson]:
    for one in observed:
        revisions = {revision.name: revision for revision in one.revisions}
        plans = plans_in_force(one)
        for pod in one.worker_pods:
            revision, plan = revisions.get(pod.revision), plans.get(pod.revision)
            if revision is None or plan is None or not trusted(revision, one.worker_image):
                continue
            yield from _of_pod(one, pod, revision, plan, nodes)


def _of_pod(
    observed: Observed, pod: OwnPod, revision: Revision, plan: PlanStatus, nodes: Mapping[str, NodeView]
) -> Iterator[Lesson]:
    memory = next((memory for memory in plan.memory if memory.stage == pod.stage), None)
    if memory is None:
        return
    answer = observed.reports.get(pod.uid)
    report = answer.report if answer and pod.ready else None
    if report is None and not _ran_out(pod):
        return
    if report is not None and (mismatch(plan, pod.stage, report) or not _plausible(report, memory.line)):
        return
    restarts = pod.container.restarts + (report is None and pod.container.ended is not None)
    yield Lesson(
        fingerprint=_fingerprint(revision, plan, pod, nodes),
        namespace=pod.namespace,
        run=f"{pod.uid}/{restarts}",
        line=memory.line,
        predicted=memory.total,
        report=report,
    )


def _ran_out(pod: OwnPod) -> bool:
    ended = pod.container.ended or pod.container.last_ended
    reason = ExitReason.parse(ended.message) if ended else None
    return reason is not None and reason.reason in OUT_OF_MEMORY


def _plausible(report: Report, line: int) -> bool:
    """Numbers that a device can have. A worker that turned ready is below its line."""
    device = max(report.devices, key=lambda found: found.bytes.total, default=None)
    return (
        device is not None
        and 0 < device.bytes.total <= line
        and device.bytes.weights > 0
        and device.bytes.kv_cache > 0
        and report.kv_cache_tokens > 0
    )


def _fingerprint(
    revision: Revision, plan: PlanStatus, pod: OwnPod, nodes: Mapping[str, NodeView]
) -> Fingerprint:
    node = nodes.get(pod.node)
    kinds = (gpu for gpu in node.gpus if gpu.product == plan.product) if node else ()
    return Fingerprint(
        model_revision=revision.facts.revision,
        architecture=revision.facts.architecture,
        engine_version=CAPABILITIES.engine_version,
        image=revision.worker_image,
        device=plan.device,
        product=plan.product,
        memory_bytes=next((gpu.memory_bytes for gpu in kinds), 0),
        weights=plan.weights,
        compute=plan.compute or plan.weights,
        checkpoint_format=plan.checkpoint_format,
        kv_cache=plan.kv_cache,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        stage=pod.stage,
        max_context_tokens=plan.max_context_tokens,
        max_batched_tokens=plan.max_batched_tokens,
        max_concurrent_sequences=revision.spec.workload.max_concurrent_sequences,
    )


def _ran_out_again(status: MemoryProfileStatus, told: list[Lesson], now: datetime) -> MemoryProfileStatus:
    """More margin for each run that ran out of memory and was not counted yet."""
    for lesson in sorted((one for one in told if one.report is None), key=lambda one: one.run):
        if lesson.run == status.out_of_memory_run:
            continue
        status = status.model_copy(
            update={
                **_seen(now),
                "out_of_memory": status.out_of_memory + 1,
                "out_of_memory_run": lesson.run,
                "margin_bytes": status.margin_bytes + lesson.line * OUT_OF_MEMORY_PERCENT // 100,
                "observations": 0,
            }
        )
    return status


def _measured(status: MemoryProfileStatus, told: list[Lesson], now: datetime) -> MemoryProfileStatus:
    """The fullest of the ledgers decides, and those of other runs that agree with it are counted."""
    ledgers = [lesson for lesson in told if lesson.report is not None]
    if not ledgers:
        return status
    fullest = max(ledgers, key=lambda lesson: (lesson.ledger.total, lesson.run))
    assert fullest.report is not None, "only lessons with a report are looked at"
    runs = {lesson.run for lesson in ledgers if agree(lesson.ledger, fullest.ledger)}
    same = status.bytes is not None and agree(status.bytes, fullest.ledger)
    if same and (status.observations >= TRUSTED_AFTER or runs == {status.observer}):
        fresh = status.observed_time is not None and now - at(status.observed_time) < REFRESH
        return status if fresh else status.model_copy(update=_seen(now))
    observations = len(runs | {status.observer} if same and status.observations else runs)
    # One ledger alone does not free what the closed form kept, or what was added for want of memory.
    kept = max(status.margin_bytes, fullest.predicted - fullest.ledger.total, 0)
    return status.model_copy(
        update={
            **_seen(now),
            "bytes": fullest.ledger,
            "kv_cache_tokens": fullest.report.kv_cache_tokens,
            "observations": observations,
            "observer": fullest.run,
            "margin_bytes": 0 if observations >= TRUSTED_AFTER else kept,
        }
    )


def _seen(now: datetime) -> dict[str, str]:
    return {"observed_time": stamp(now), "expiry_time": stamp(now + LIFETIME)}


def agree(one: MeasuredMemory, other: MeasuredMemory) -> bool:
    """Whether two ledgers tell the same: category by category."""
    return all(
        abs(a - b) <= max(AGREE_BYTES, max(a, b) * AGREE_PERCENT // 100)
        for a, b in ((getattr(one, name), getattr(other, name)) for name in type(one).model_fields)
    )
