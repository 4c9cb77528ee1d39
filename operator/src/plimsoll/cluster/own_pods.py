"""What is kept of the operator's own pods: more than planning reads, because their fate is told in status.

Whose pod it is, and of which replica, is told by its owner and its name. Labels say the same, but people can
edit labels, and a worker pod that lost them would hold a GPU that nobody accounts for.

Times stay RFC 3339 text until they are compared; `at` parses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plimsoll.actuate import ownership
from plimsoll.actuate.pods import WORKER_NAME
from plimsoll.api.v1alpha1 import GROUP, KIND

Object = Mapping[str, Any]

IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "RegistryUnavailable",
}
"""Why a container waits: its image."""
CONTAINER_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
"""Why a container waits: it cannot be made, for want of a Secret, say."""

LOST_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Kubernetes puts one of them, with NoExecute, on a node that is not ready."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended."""

    reason: str
    exit_code: int
    message: str
    time: str
    started: str = ""
    """When it had begun to run."""


@dataclass(frozen=True, slots=True)
class Container:
    """The pod's one container."""

    ready: bool = False
    restarts: int = 0
    waiting_reason: str = ""
    waiting_message: str = ""
    started_at: str = ""
    """When it began to run; empty while it does not."""
    ended: Ended | None = None
    """Set while the container is not running again."""
    last_ended: Ended | None = None
    """The run before the present one."""

    @property
    def failed(self) -> bool:
        """It ended badly and does not run again yet."""
        return self.waiting_reason == "CrashLoopBackOff" or bool(self.ended and self.ended.exit_code)


@dataclass(frozen=True, slots=True)
class OwnPod:
    namespace: str
    name: str
    uid: str
    owner_uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    created: str
    terminating: bool
    node: str
    """Where it is bound; empty before."""
    pinned_node: str
    phase: str
    reason: str
    message: str
    address: str
    ready: bool
    unschedulable: str
    """The scheduler's words while it finds no place; empty otherwise."""
    unschedulable_since: str
    container: Container
    scheduled_since: str = ""
    """When it was bound; empty before."""
    ready_since: str = ""
    """When it turned ready; empty while it is not."""
    unready_since: str = ""
    """When it turned not ready, or was made; empty while it is ready."""
    startup_seconds: int = 0
    """How long its container may take to its first answer; 0: as long as it likes."""
    gated: bool = False
    """The scheduler does not look at it yet."""
    disrupted: bool = False
    """Kubernetes ended it for a reason that is not its own: evicted, preempted, its node drained."""
    patience_seconds: int | None = None
    """How long Kubernetes leaves it on a node that is not ready; None: without end."""
    relabelled: bool = False
    """Somebody changed labels that Services and budgets select it by; `labels` has them as they were."""

    @property
    def component(self) -> str:
        return self.labels.get(ownership.NAME, "")

    @property
    def revision(self) -> str:
        return self.labels.get(ownership.REVISION, "")

    @property
    def replica(self) -> int:
        return _number(self.labels.get(ownership.REPLICA))

    @property
    def stage(self) -> int:
        return _number(self.labels.get(ownership.STAGE))

    @property
    def attempt(self) -> int:
        return _number(self.labels.get(ownership.ATTEMPT))

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


def _number(text: str | None) -> int:
    """Labels can be edited by hand; what is no number belongs to no replica of any plan."""
    return int(text) if text and text.isascii() and text.isdigit() else -1


def at(text: str) -> datetime:
    """The moment a Kubernetes time stands for."""
    return datetime.fromisoformat(text)


def stamp(moment: datetime) -> str:
    """As metav1.Time: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def owner_of(obj: Object) -> Object | None:
    """The reference to the LLMDeployment that the object belongs to."""
    for ref in obj["metadata"].get("ownerReferences") or ():
        if ref.get("controller") and ref["kind"] == KIND and ref["apiVersion"].startswith(f"{GROUP}/"):
            found: Object = ref
            return found
    return None


def own_pod(obj: Object, owner: Object, pinned_node: str) -> OwnPod:
    """The view of one of the operator's pods."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    found = dict(meta.get("labels") or {})
    wanted = _labels(meta["name"], owner)
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    ready = conditions.get("Ready", {})
    stuck = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return OwnPod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        owner_uid=str(owner["uid"]),
        labels=found | wanted,
        annotations={
            key: value
            for key, value in (meta.get("annotations") or {}).items()
            if key.startswith("plimsoll.dev/")
        },
        created=meta["creationTimestamp"],
        terminating=bool(meta.get("deletionTimestamp")),
        node=spec.get("nodeName") or "",
        pinned_node=pinned_node,
        phase=status.get("phase") or "Pending",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        address=status.get("podIP") or "",
        ready=ready.get("status") == "True",
        unschedulable=str(scheduled.get("message") or "no reason given") if stuck else "",
        unschedulable_since=str(scheduled.get("lastTransitionTime") or "") if stuck else "",
        container=_container(next(iter(status.get("containerStatuses") or ()), {})),
        scheduled_since=_since(scheduled),
        ready_since=_since(ready),
        unready_since=str(ready.get("lastTransitionTime") or "") if ready.get("status") == "False" else "",
        startup_seconds=_startup_seconds(spec),
        gated=bool(spec.get("schedulingGates")),
        disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
        patience_seconds=_patience(spec.get("tolerations") or ()),
        relabelled=not wanted.items() <= found.items(),
    )


def _labels(name: str, owner: Object) -> dict[str, str]:
    """What a worker pod of that name was labelled with; nothing for other pods."""
    matched = WORKER_NAME.fullmatch(name)
    return (
        {
            ownership.NAME: ownership.WORKER,
            ownership.MANAGED_BY: ownership.OPERATOR,
            ownership.DEPLOYMENT: str(owner["name"]),
            **{f"plimsoll.dev/{part}": value for part, value in matched.groupdict().items()},
        }
        if matched
        else {}
    )


def _since(condition: Object) -> str:
    """Since when a condition is True; empty while it is not."""
    return str(condition.get("lastTransitionTime") or "") if condition.get("status") == "True" else ""


def _startup_seconds(spec: Object) -> int:
    """As the kubelet counts."""
    containers: Sequence[Object] = spec.get("containers") or ({},)
    probe = containers[0].get("startupProbe") or {}
    return int(probe.get("failureThreshold") or 0) * int(probe.get("periodSeconds") or 0)


def _patience(tolerations: Iterable[Object]) -> int | None:
    """As the taint manager counts: the shortest of the tolerations that speak of one of the two taints."""
    told = [
        tuple(one.get("tolerationSeconds") for one in tolerations if _tolerates(one, taint))
        for taint in LOST_TAINTS
    ]
    shortest = [min((s for s in some if s is not None), default=None) if some else 0 for some in told]
    return min((seconds for seconds in shortest if seconds is not None), default=None)


def _tolerates(toleration: Object, taint: str) -> bool:
    return toleration.get("key") in (None, "", taint) and toleration.get("effect") in (None, "", "NoExecute")


def _container(status: Object) -> Container:
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    return Container(
        ready=bool(status.get("ready")),
        restarts=int(status.get("restartCount") or 0),
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        started_at=(state.get("running") or {}).get("startedAt") or "",
        ended=_ended(state.get("terminated")),
        last_ended=_ended((status.get("lastState") or {}).get("terminated")),
    )


def _ended(state: Object | None) -> Ended | None:
    if not state:
        return None
    return Ended(
        reason=state.get("reason") or "Error",
        exit_code=int(state.get("exitCode") or 0),
        message=state.get("message") or "",
        time=state.get("finishedAt") or "",
        started=state.get("startedAt") or "",
    )
