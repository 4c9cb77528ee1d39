"""The vocabulary of the lifecycle: what is observed of one resource, and what is to be done about it.

All of it is frozen data. `lifecycle.next_actions` maps the first to the second without I/O, so every
situation that a cluster can get into is one row of a table test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from plimsoll.actuate.pods import PodDefaults
from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import Exclusion, LLMDeploymentStatus, ReplicaStatus
from plimsoll.cluster.course import Course
from plimsoll.cluster.own_pods import OwnPod, at
from plimsoll.cluster.resource import Resource
from plimsoll.inventory.views import NodeView, VolumeView
from plimsoll.model.facts import ModelFacts
from plimsoll_worker.launch import Report

Object = Mapping[str, Any]


# --- what is remembered between rounds; all of it may be lost at any time
# ----------------------------------------


@dataclass(frozen=True, slots=True)
class FailedInspection:
    """The last attempt to read the model, and when the next may start."""

    model_key: str
    reason: str
    message: str
    failures: int
    retry_at: datetime
    pod_uid: str = ""
    """The pod that failed, so that it counts once."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server's own words about a pod it would not take."""

    message: str
    failures: int
    retry_at: datetime


Place = tuple[str, int, int]
"""Revision, replica and stage."""


@dataclass(frozen=True, slots=True)
class Memory:
    inspection: FailedInspection | None = None
    refusal: Refusal | None = None
    attempts: Mapping[Place, int] = field(default_factory=dict)
    """The highest attempt ever seen running: a pod that vanished is made anew under the next number."""


# --- what is observed
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What a worker's /report said, or why it could not be read."""

    report: Report | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take."""

    inspect: timedelta
    unschedulable: timedelta
    exclusion: timedelta


@dataclass(frozen=True, slots=True)
class Observed:
    """One resource and all that belongs to it, at one moment."""

    resource: Resource
    now: datetime
    defaults: PodDefaults
    timing: Timing
    worker_image: str
    """Image of new revisions."""
    operator_namespace: str
    model_key: str
    known_facts: ModelFacts | None
    """From a revision of this namespace that was made for the same source."""
    revisions: tuple[Revision, ...]
    """This resource's own."""
    volume: VolumeView | None
    inspect_pods: tuple[OwnPod, ...]
    worker_pods: tuple[OwnPod, ...]
    services: Mapping[str, Object]
    """Those that have the names of its own, whosoever they are."""
    budgets: Mapping[str, Object]
    """The same of PodDisruptionBudgets."""
    reports: Mapping[str, ReportAnswer]
    """By pod uid; only of pods that were asked."""
    promised: frozenset[str]
    """Names of pods that the API server has made and no informer shows yet."""
    ready_nodes: frozenset[str]
    unready_nodes: Mapping[str, NodeView]
    """Of those that its pods are bound to, by name."""
    memory: Memory
    course: Course | None = None
    """What was decided; None when the spec does not parse."""

    @property
    def retrying(self) -> bool:
        """Somebody asks to forget what failed."""
        return self.resource.retry not in ("", self.resource.status.retried)

    @property
    def accounts(self) -> Sequence[ReplicaStatus]:
        """What is held against each replica."""
        told = self.resource.status.replica_statuses
        if not self.retrying:
            return told
        clean = {"restarts": 0, "given_up": False, "next_retry_time": None, "last_failure": None}
        return [status.model_copy(update=clean) for status in told]

    def is_told(self, pod: OwnPod) -> bool:
        """Whether status says of this very run of a worker that it answers. What an earlier process had read
        of it was told in the same write, and need not be read again to stand."""
        which = pod.revision, pod.replica, pod.attempt
        restarts = sum(
            one.container.restarts
            for one in self.worker_pods
            if (one.revision, one.replica, one.attempt) == which and not one.terminating
        )
        return any(
            (one.revision, one.replica, one.attempt) == which
            and one.ready
            and one.container_restarts == restarts
            for one in self.resource.status.replica_statuses
        )

    @property
    def exclusions(self) -> Sequence[Exclusion]:
        """Those that hold now."""
        if self.retrying:
            return ()
        return [
            exclusion
            for exclusion in self.resource.status.exclusions
            if exclusion.until is None or at(exclusion.until) > self.now
        ]


# --- what is to be done
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WriteRevision:
    revision: Revision


@dataclass(frozen=True, slots=True)
class DeleteRevision:
    name: str


@dataclass(frozen=True, slots=True)
class WriteStatus:
    status: LLMDeploymentStatus


@dataclass(frozen=True, slots=True)
class CreatePod:
    body: Object
    pinned: bool
    """Its capacity was planned: promised in the ledger until an informer shows the pod."""
    template: Object | None = None
    """ResourceClaimTemplate that must be there before the pod."""

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class DeletePod:
    name: str
    uid: str
    why: str


@dataclass(frozen=True, slots=True)
class OpenGate:
    """Let the scheduler see a pod: all pods of its replica exist."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ApplyObject:
    body: Object
    why: str
    exists: bool
    """Ours is there and says something else. Where none was seen, none of somebody else's is changed."""


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """An event that `kubectl describe` shows."""

    reason: str
    message: str
    warning: bool = False


Action = (
    WriteRevision | DeleteRevision | WriteStatus | CreatePod | DeletePod | OpenGate | ApplyObject | EmitEvent
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`actions` are carried out in order and stop at the first that fails: what is written first is what a
    restarted operator needs to go on."""

    actions: tuple[Action, ...]
    memory: Memory
    wake_at: datetime | None = None
    """When this resource needs another look though nothing happens."""


def soonest(*moments: datetime | None) -> datetime | None:
    return min((moment for moment in moments if moment), default=None)


def backoff(failures: int, first: timedelta, longest: timedelta) -> timedelta:
    """Doubles with every failure, counted from 1."""
    doublings = min(max(failures - 1, 0), 20)
    return min(first * (1 << doublings), longest)
