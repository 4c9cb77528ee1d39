"""Brings the worker pods of one resource to what its plan says: which to delete, which to create, how each
replica is.

    pod of another revision, of no planned replica, or on another node ─► delete
    pod without a place at the scheduler's, past the deadline ──────────► delete, exclude the node
    pod that ended for good (evicted, node shut down) ──────────────────► delete, next attempt
    place without a pod ────────────────────────────────────────────────► create, unless something
                                                                           still holds what it needs

A replaced revision goes first and the new one follows when it is gone (Recreate): the same GPUs may be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from plimsoll.actuate.claims import claim_template, is_claimed
from plimsoll.actuate.pods import worker_pod, worker_pod_name
from plimsoll.actuate.revisions import Revision
from plimsoll.api.conditions import Failure
from plimsoll.api.v1alpha1 import LastFailure, PlanPlacement, PlanStatus, ReplicaStatus
from plimsoll.cluster.observed import CreatePod, DeletePod, Exclusion, Observed, Place, backoff, soonest
from plimsoll.cluster.own_pods import CONTAINER_REASONS, IMAGE_REASONS, OwnPod, at, stamp
from plimsoll.inventory.views import Resources
from plimsoll_worker.launch import ExitReason

RECREATE_BACKOFF = timedelta(seconds=10), timedelta(minutes=5)
"""For pods that end although they should restart in place."""
BLAMELESS = {"Evicted", "Preempting", "Terminated", "NodeShutdown", "Shutdown", "NodeLost"}
"""Pod reasons that are the node's doing: no back-off."""
STUCK_REASONS = IMAGE_REASONS | CONTAINER_REASONS | {"CrashLoopBackOff"}


@dataclass(frozen=True, slots=True)
class Replicas:
    """What is to be done, and what there is."""

    creates: tuple[CreatePod, ...] = ()
    deletes: tuple[DeletePod, ...] = ()
    statuses: tuple[ReplicaStatus, ...] = ()
    existing: int = 0
    """Replicas with a living pod, of any revision."""
    ready: int = 0
    updated: int = 0
    updated_scheduled: int = 0
    updated_ready: int = 0
    unschedulable: str = ""
    failures: tuple[Failure, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    attempts: Mapping[Place, int] = field(default_factory=dict)
    wake_at: datetime | None = None
    complete: bool = True
    """Every planned place has its pod."""


def reconcile_replicas(
    observed: Observed,
    plan: PlanStatus | None,
    revision: Revision | None,
    requests: Resources | None,
    *,
    running: bool,
) -> Replicas:
    """`plan` belongs to `revision`, each of its pods asks for `requests`. `running` False: no pod is wanted.
    No plan while pods are wanted leaves the pods that run alone: they serve until there is something
    better."""
    if not running:
        everything = tuple(_delete(pod, "no pods are wanted") for pod in _living(observed.worker_pods))
        return _counted(Replicas(deletes=everything), observed, None)
    if plan is None or revision is None or requests is None:
        return _counted(Replicas(statuses=tuple(observed.resource.status.replica_statuses)), observed, None)
    return _counted(_Round(observed, plan, revision, requests).result(), observed, plan)


def leave_alone(observed: Observed) -> Replicas:
    """What there is, with nothing done about it."""
    return reconcile_replicas(observed, None, None, None, running=True)


class _Round:
    """One pass over the places of a plan."""

    def __init__(self, observed: Observed, plan: PlanStatus, revision: Revision, requests: Resources) -> None:
        self._seen, self._plan, self._revision, self._requests = observed, plan, revision, requests
        self._creates: list[CreatePod] = []
        self._deletes: list[DeletePod] = []
        self._exclusions: list[Exclusion] = []
        self._wake: list[datetime] = []
        self._missing = 0

    def result(self) -> Replicas:
        superseded = [pod for pod in self._seen.worker_pods if pod.revision != self._plan.revision]
        planned = {placement.replica for placement in self._plan.placements}
        for pod in _living(superseded):
            self._deletes.append(_delete(pod, f"revision {pod.revision} gives way to {self._plan.revision}"))
        for pod in _living(self._pods(lambda pod: pod.replica not in planned)):
            self._deletes.append(_delete(pod, f"replica {pod.replica} is not planned"))
        # A terminating pod on a node that is gone may never leave; what it held is gone too.
        waiting = any(pod.node in self._seen.ready_nodes or not pod.node for pod in superseded)
        statuses = [self._replica(replica, may_create=not waiting) for replica in sorted(planned)]
        return Replicas(
            creates=tuple(self._creates),
            deletes=tuple(self._deletes),
            statuses=tuple(statuses),
            exclusions=tuple(self._exclusions),
            wake_at=soonest(*self._wake),
            complete=not self._missing,
        )

    def _pods(self, chosen: Callable[[OwnPod], bool]) -> list[OwnPod]:
        return [pod for pod in self._seen.worker_pods if pod.revision == self._plan.revision and chosen(pod)]

    def _replica(self, replica: int, *, may_create: bool) -> ReplicaStatus:
        pods = self._pods(lambda pod: pod.replica == replica)
        attempt = self._attempt(replica, pods)
        kept: list[OwnPod] = []
        for placement in self._plan.placements:
            if placement.replica != replica:
                continue
            stage = [pod for pod in pods if pod.stage == placement.stage]
            pod = self._keep(stage, placement)
            if pod:
                kept.append(pod)
                continue
            self._missing += 1
            if may_create:
                self._create(placement, attempt, stage)
        previous = next(
            (old for old in self._seen.resource.status.replica_statuses if old.replica == replica), None
        )
        stages = self._plan.pipeline_parallel
        ready = len(kept) == stages and all(pod.ready for pod in kept)
        failure = next((found for pod in pods if (found := last_failure(pod))), None)
        if failure is None and previous and not ready:
            failure = previous.last_failure
        return ReplicaStatus(
            replica=replica,
            attempt=max((pod.attempt for pod in kept), default=attempt),
            ready=ready,
            restarts=sum(pod.container.restarts for pod in kept),
            last_failure=failure,
        )

    def _keep(self, pods: list[OwnPod], placement: PlanPlacement) -> OwnPod | None:
        """The pod that holds this place, if one does; the others of this stage are deleted."""
        kept: OwnPod | None = None
        for pod in sorted(_living(pods), key=lambda pod: pod.attempt, reverse=True):
            where = pod.node or pod.pinned_node
            if kept or where != placement.node:
                self._deletes.append(_delete(pod, f"replica {pod.replica} belongs on node {placement.node}"))
            elif pod.finished:
                self._replace_finished(pod)
            elif self._is_stranded(pod):
                self._exclude(pod, placement.node)
            else:
                kept = pod
        return kept

    def _replace_finished(self, pod: OwnPod) -> None:
        ended = pod.container.ended or pod.container.last_ended
        since = at(ended.time) if ended and ended.time else at(pod.created)
        first, longest = RECREATE_BACKOFF
        due = since if pod.reason in BLAMELESS else since + backoff(pod.attempt + 1, first, longest)
        if self._seen.now >= due:
            self._deletes.append(_delete(pod, f"it ended: {pod.reason or pod.phase}"))
        else:
            self._wake.append(due)

    def _is_stranded(self, pod: OwnPod) -> bool:
        if not pod.unschedulable:
            return False
        deadline = at(pod.unschedulable_since or pod.created) + self._seen.timing.unschedulable
        if self._seen.now >= deadline:
            return True
        self._wake.append(deadline)
        return False

    def _exclude(self, pod: OwnPod, node: str) -> None:
        self._deletes.append(_delete(pod, f"the scheduler finds no place for it: {pod.unschedulable}"))
        until = self._seen.now + self._seen.timing.exclusion
        self._exclusions.append(Exclusion(node, pod.unschedulable, until))

    def _create(self, placement: PlanPlacement, attempt: int, pods: list[OwnPod]) -> None:
        """Unless something is in the way: a refusal that is backing off, an excluded node, a pod that still
        holds the same room, or a finished one that waits for its back-off."""
        refusal = self._seen.memory.refusal
        if refusal and self._seen.now < refusal.retry_at:
            self._wake.append(refusal.retry_at)
            return
        if any(exclusion.node == placement.node for exclusion in self._exclusions):
            return
        leaving = {delete.uid for delete in self._deletes}
        for pod in pods:
            same_place = (pod.node or pod.pinned_node) == placement.node
            if pod.finished and not pod.terminating and pod.uid not in leaving:
                return
            if same_place and not pod.finished and pod.node in self._seen.ready_nodes:
                return
        name = worker_pod_name(self._plan.revision, placement.replica, placement.stage, attempt)
        if name in self._seen.promised:
            return
        body = worker_pod(self._revision, self._plan, placement, attempt, self._requests, self._seen.defaults)
        template = claim_template(self._revision, self._plan) if is_claimed(self._plan) else None
        self._creates.append(CreatePod(body, pinned=True, template=template))

    def _attempt(self, replica: int, pods: Iterable[OwnPod]) -> int:
        """The number the next pod of this replica carries. What status says is kept until a pod with that
        number was seen; then a pod that is missing was lost, and the next number makes it a new one."""
        status = self._seen.resource.status
        told = 0
        if status.update_revision == self._plan.revision:
            told = next((old.attempt for old in status.replica_statuses if old.replica == replica), 0)
        used = [pod.attempt for pod in pods]
        if (known := self._seen.memory.attempts.get((self._plan.revision, replica))) is not None:
            used.append(known)
        return max([told, *(attempt + 1 for attempt in used)])


def _living(pods: Iterable[OwnPod]) -> list[OwnPod]:
    return [pod for pod in pods if not pod.terminating]


def _delete(pod: OwnPod, why: str) -> DeletePod:
    return DeletePod(pod.name, pod.uid, why)


def _counted(found: Replicas, observed: Observed, plan: PlanStatus | None) -> Replicas:
    """Adds the counts, the troubles and the attempts seen: they are about pods that are there, whatever is
    planned."""
    living = [pod for pod in _living(observed.worker_pods) if not pod.finished]
    updated = [pod for pod in living if plan and pod.revision == plan.revision and pod.stage == 0]
    attempts = dict(observed.memory.attempts)
    for pod in observed.worker_pods:
        place = (pod.revision, pod.replica)
        attempts[place] = max(pod.attempt, attempts.get(place, 0))
    failures = [told for pod in observed.worker_pods if not pod.terminating and (told := failing(pod))]
    return Replicas(
        creates=found.creates,
        deletes=found.deletes,
        statuses=found.statuses,
        exclusions=found.exclusions,
        wake_at=found.wake_at,
        complete=found.complete,
        existing=len({(pod.revision, pod.replica) for pod in living}),
        ready=sum(pod.ready for pod in living if pod.stage == 0),
        updated=len(updated),
        updated_scheduled=sum(bool(pod.node) for pod in updated),
        updated_ready=sum(pod.ready for pod in updated),
        unschedulable=next(
            (f"pod {pod.name}: {pod.unschedulable}" for pod in living if pod.unschedulable), ""
        ),
        failures=tuple(failures),
        attempts=attempts,
    )


def last_failure(pod: OwnPod) -> LastFailure | None:
    """How the pod's container last ended, in the worker's own words where it left any."""
    ended = pod.container.ended or pod.container.last_ended
    if ended and (ended.exit_code != 0 or pod.finished):
        own = ExitReason.parse(ended.message)
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
