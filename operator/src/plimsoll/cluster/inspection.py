"""Learns what a model is: one inspect pod, read once, then deleted.

    facts known ──────────────────────────────► Resolved
    claim missing ────────────────────────────► Failed (no pod; the claim's appearance wakes us)
    no pod, no back-off running ──────────────► create the pod, Inspecting
    pod ended with facts ─────────────────────► Resolved; pod deleted after the facts are in a revision
    pod ended without, or stuck too long ─────► Failed; pod deleted; next try after a back-off

A failure stays told while the next try runs, so a condition does not flap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from pydantic import ValidationError

from plimsoll.actuate.ownership import MODEL_KEY
from plimsoll.actuate.pods import inspect_pod
from plimsoll.cluster.observed import Action, CreatePod, DeletePod, FailedInspection, Observed, backoff
from plimsoll.cluster.own_pods import CONTAINER_REASONS, IMAGE_REASONS, OwnPod, at, stamp
from plimsoll.model.facts import PREFIX, FactsUnreadable, InspectFailure, ModelFacts

PASSING = {"HubUnreachable", "ImagePullBackOff", "Unschedulable", "InspectTimedOut", "InspectFailed"}
"""Reasons that may go away by themselves. The others need a person; they are tried again too, but seldom."""
PASSING_BACKOFF = timedelta(seconds=5), timedelta(minutes=5)
LASTING_BACKOFF = timedelta(minutes=5), timedelta(hours=1)


class Resolution(Enum):
    RESOLVED = "Resolved"
    INSPECTING = "Inspecting"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Inspection:
    resolution: Resolution
    reason: str
    message: str
    facts: ModelFacts | None = None
    creates: tuple[Action, ...] = ()
    deletes: tuple[Action, ...] = ()
    memory: FailedInspection | None = None
    wake_at: datetime | None = None


def inspect_model(observed: Observed) -> Inspection:
    """Where this resource's model stands, and what to do about it."""
    remembered = observed.memory.inspection
    if remembered and remembered.model_key != observed.model_key:
        remembered = None
    mine = [pod for pod in observed.inspect_pods if _key(pod) == observed.model_key]
    stale = tuple(
        DeletePod(pod.name, pod.uid, "its model is no longer the spec's")
        for pod in observed.inspect_pods
        if pod not in mine and not pod.terminating
    )
    if observed.known_facts:
        done = tuple(
            DeletePod(pod.name, pod.uid, "the model is known") for pod in mine if not pod.terminating
        )
        return Inspection(
            Resolution.RESOLVED, "ModelRead", "", facts=observed.known_facts, deletes=stale + done
        )
    pod = next((pod for pod in mine if not pod.terminating), None)
    step = _follow(observed, pod, remembered) if pod else _begin(observed, bool(mine), remembered)
    return replace(step, deletes=stale + step.deletes)


def _key(pod: OwnPod) -> str:
    return pod.labels.get(MODEL_KEY, "")


def _begin(observed: Observed, still_terminating: bool, remembered: FailedInspection | None) -> Inspection:
    """There is no pod to look at."""
    if observed.volume and observed.volume.reason:
        told = f"{observed.volume.reason}; the model is read as soon as it is there"
        return Inspection(Resolution.FAILED, "VolumeNotFound", told, memory=remembered)
    if remembered and observed.now < remembered.retry_at:
        return _failed(remembered)
    assert observed.resource.spec is not None
    body = inspect_pod(observed.resource.owner, observed.resource.spec, observed.defaults)
    create = () if still_terminating else (CreatePod(body, pinned=False),)
    if remembered:
        return replace(_failed(remembered), creates=create, wake_at=None)
    return Inspection(
        Resolution.INSPECTING,
        "Inspecting",
        f"pod {body['metadata']['name']} reads the model's headers",
        creates=create,
    )


def _follow(observed: Observed, pod: OwnPod, remembered: FailedInspection | None) -> Inspection:
    """The pod is there: has it ended, is it stuck, or is it at work?"""
    if remembered and remembered.pod_uid == pod.uid:
        return replace(_failed(remembered), deletes=(_delete(pod, remembered.reason),))
    if pod.finished or pod.container.ended:
        answer = _read(pod)
        if isinstance(answer, ModelFacts):
            return Inspection(
                Resolution.RESOLVED,
                "ModelRead",
                "",
                facts=answer,
                deletes=(_delete(pod, "the model is known"),),
            )
        return _fail(observed, pod, remembered, answer)
    obstacle = _obstacle(pod)
    deadline = at(pod.created) + observed.timing.inspect
    if observed.now >= deadline:
        seconds = int(observed.timing.inspect.total_seconds())
        late = InspectFailure(
            reason="InspectTimedOut", message=f"inspect pod {pod.name} has not ended within {seconds} s"
        )
        return _fail(observed, pod, remembered, obstacle or late)
    if obstacle:
        waits = (
            f"{obstacle.message.rstrip('.')}; unless it has ended by {stamp(deadline)}, another one is tried"
        )
        return Inspection(Resolution.FAILED, obstacle.reason, waits, memory=remembered, wake_at=deadline)
    if remembered:
        return replace(_failed(remembered), wake_at=deadline)
    return Inspection(
        Resolution.INSPECTING, "Inspecting", f"pod {pod.name} reads the model's headers", wake_at=deadline
    )


def _read(pod: OwnPod) -> ModelFacts | InspectFailure:
    """The termination message: facts, or a failure in the inspect command's words, or ours when it left
    none."""
    ended = pod.container.ended or pod.container.last_ended
    text = ended.message if ended else ""
    try:
        if text.startswith(PREFIX):
            return ModelFacts.unpack(text)
        return InspectFailure.model_validate_json(text)
    except FactsUnreadable as error:
        return InspectFailure(reason="FactsUnreadable", message=f"inspect pod {pod.name}: {error}")
    except ValidationError:
        pass
    if pod.reason == "DeadlineExceeded":
        return InspectFailure(reason="InspectTimedOut", message=f"inspect pod {pod.name}: {pod.message}")
    how = f"exit code {ended.exit_code}, {ended.reason}" if ended else (pod.reason or pod.phase)
    tail = f": {text[-300:]}" if text else f" {pod.message}".rstrip()
    return InspectFailure(
        reason="InspectFailed", message=f"inspect pod {pod.name} ended without facts ({how}){tail}"
    )


def _obstacle(pod: OwnPod) -> InspectFailure | None:
    """Why the pod does not get to work, in the words of who refuses it."""
    waiting = pod.container.waiting_reason
    if pod.unschedulable:
        return InspectFailure(reason="Unschedulable", message=f"inspect pod {pod.name}: {pod.unschedulable}")
    if waiting in IMAGE_REASONS or waiting in CONTAINER_REASONS:
        reason = "ImagePullBackOff" if waiting in IMAGE_REASONS else waiting
        return InspectFailure(
            reason=reason, message=f"inspect pod {pod.name}: {waiting}: {pod.container.waiting_message}"
        )
    return None


def _fail(
    observed: Observed, pod: OwnPod, remembered: FailedInspection | None, failure: InspectFailure
) -> Inspection:
    failures = 1 + (remembered.failures if remembered else 0)
    first, longest = PASSING_BACKOFF if failure.reason in PASSING else LASTING_BACKOFF
    failed = FailedInspection(
        model_key=observed.model_key,
        reason=failure.reason,
        message=failure.message,
        failures=failures,
        retry_at=observed.now + backoff(failures, first, longest),
        pod_uid=pod.uid,
    )
    return replace(_failed(failed), deletes=(_delete(pod, failure.reason),))


def _failed(failure: FailedInspection) -> Inspection:
    return Inspection(
        Resolution.FAILED,
        failure.reason,
        f"{failure.message}; tried again after {stamp(failure.retry_at)}",
        memory=failure,
        wake_at=failure.retry_at,
    )


def _delete(pod: OwnPod, why: str) -> DeletePod:
    return DeletePod(pod.name, pod.uid, why)
