"""What went wrong with a pod, in the worker's own words where it left any."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from plimsoll.api.conditions import Failure
from plimsoll.api.v1alpha1 import LastFailure
from plimsoll.cluster.own_pods import CONTAINER_REASONS, IMAGE_REASONS, Ended, OwnPod, at, stamp
from plimsoll_worker.launch import ExitCode, ExitReason

BLAMELESS = {"Evicted", "Preempting", "Terminated", "NodeShutdown", "Shutdown", "NodeLost"}
"""Pod reasons that are the node's doing: no back-off, no restart counted."""
STUCK_REASONS = IMAGE_REASONS | CONTAINER_REASONS | {"CrashLoopBackOff"}
OUT_OF_MEMORY = {ExitCode.CUDA_OUT_OF_MEMORY.value, ExitCode.MEMORY_ESTIMATE_EXCEEDED.value}
"""Failures that the same configuration would meet again."""


def causes_first(pods: Iterable[OwnPod]) -> list[OwnPod]:
    """A stage that ended because another did says so: the other one's words are what there is to know."""
    return sorted(pods, key=follows)


def follows(pod: OwnPod) -> bool:
    """Whether it ended because another pod of its replica did."""
    told = last_failure(pod)
    return told is not None and told.reason == ExitCode.PEER_LOST.value


def blameless(pod: OwnPod) -> bool:
    return pod.disrupted or pod.reason in BLAMELESS


def last_failure(pod: OwnPod) -> LastFailure | None:
    """How the pod's container last ended, in the worker's own words where it left any."""
    ended = pod.container.ended or pod.container.last_ended
    if ended and (ended.exit_code != 0 or pod.finished or _ran_late(pod, ended)):
        own = ExitReason.parse(ended.message)
        if own is None and _ran_late(pod, ended):
            return LastFailure(
                reason="StartupDeadlineExceeded", pod=pod.name, message=_late(pod), time=ended.time
            )
        return LastFailure(
            reason=own.reason.value if own else ended.reason,
            pod=pod.name,
            message=own.message if own else _words(ended.message, ended.exit_code),
            time=ended.time or pod.created,
        )
    if pod.phase == "Failed":
        return LastFailure(
            reason=pod.reason or "Failed", pod=pod.name, message=pod.message, time=stamp(at(pod.created))
        )
    return None


def _ran_late(pod: OwnPod, ended: Ended) -> bool:
    """It ran until the kubelet had no more patience, and answered in none of that time."""
    if not (pod.startup_seconds and pod.unready_since and ended.started and ended.time):
        return False
    ran = at(ended.time) - at(ended.started)
    return at(pod.unready_since) <= at(ended.started) and ran >= timedelta(seconds=pod.startup_seconds)


def _late(pod: OwnPod) -> str:
    return (
        f"it did not answer within {pod.startup_seconds} s of its start, so the kubelet ended it; its log "
        "says how far it came (kubectl logs --previous)"
    )


def starting(pod: OwnPod) -> str:
    """Until when a pod that loads may go on; empty when it does not."""
    began = pod.container.started_at
    if pod.ready or pod.terminating or not began or not pod.startup_seconds:
        return ""
    until = stamp(at(began) + timedelta(seconds=pod.startup_seconds))
    return f"pod {pod.name} loads since {began}; the kubelet restarts it at {until} unless it answers by then"


def _words(message: str, exit_code: int) -> str:
    return (
        message[-500:] if message else f"the container ended with exit code {exit_code} and left no message"
    )


def failing(pod: OwnPod) -> Failure | None:
    """Why a pod does not answer, when that is a failure and not just a start."""
    if pod.ready:
        return None
    if ended := last_failure(pod):
        again = f" (restarted {pod.container.restarts} times)" if pod.container.restarts else ""
        return Failure(ended.reason, f"{ended.message}{again}", pod.name)
    if pod.container.waiting_reason in STUCK_REASONS:
        # The kubelet swings between the two words while it retries; conditions must not.
        waiting = pod.container.waiting_reason
        reason = "ImagePullBackOff" if waiting in IMAGE_REASONS else waiting
        return Failure(reason, pod.container.waiting_message, pod.name)
    return None
