"""How long each stage of a start took, so that "slow" has a name: scheduler, image, disk, GPU.

Read off the pod that turned ready last, and off its report for what happens inside the process. Kubernetes
tells whole seconds, the worker milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from plimsoll.api.v1alpha1 import PlanStatus, StartupTime
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import OwnPod, at
from plimsoll_worker.launch import Report, StartupStage
from plimsoll_worker.launch import StartupTime as WorkerTime


def startup(observed: Observed, plan: PlanStatus | None) -> list[StartupTime]:
    """Of the youngest replica of the plan; what was told before, while none has come since, or it has not
    been read since the operator started. A container that restarted in place has no image to wait for, so its
    pod tells nothing new."""
    fresh = [
        pod
        for pod in observed.worker_pods
        if plan
        and pod.revision == plan.revision
        and pod.ready_since
        and pod.container.started_at
        and not pod.container.restarts
    ]
    if not fresh:
        return list(observed.resource.status.startup)
    youngest = max(fresh, key=lambda pod: (pod.ready_since, pod.name))
    answer = observed.reports.get(youngest.uid)
    if answer is None and observed.is_told(youngest):
        return list(observed.resource.status.startup)
    return _stages(youngest, answer.report if answer else None)


def _stages(pod: OwnPod, report: Report | None) -> list[StartupTime]:
    """Each stage from the end of the one before it."""
    started = _milliseconds(pod.container.started_at)
    ends = [("Scheduled", _milliseconds(pod.scheduled_since or pod.created)), ("ImagePulled", started)]
    ends += [(time.stage.value, started + time.milliseconds) for time in _told(report)]
    ends.append(("Ready", _milliseconds(pod.ready_since)))
    found: list[StartupTime] = []
    before = _milliseconds(pod.created)
    for stage, end in ends:
        found.append(StartupTime(stage=stage, milliseconds=max(0, end - before)))
        before = max(before, end)
    return found


def _told(report: Report | None) -> Iterable[WorkerTime]:
    """Its own word for ready comes before the probe that counts."""
    return [time for time in report.startup if time.stage is not StartupStage.READY] if report else ()


def _milliseconds(time: str) -> int:
    return int(at(time).timestamp() * 1000)
