"""Brings the worker pods of one resource to what its plans say: which to delete, which to create, which the
scheduler may see, and how each replica is.

    pod of no planned replica, or of an older attempt ──────────► delete
    pod on another node, deleted by somebody, or vanished ──────► the replica's next attempt
    pod without a place at the scheduler's, past the deadline ──► the next attempt, the node excluded
    pod that ended for good ────────────────────────────────────► the next attempt after a back-off, or none
    place without a pod ────────────────────────────────────────► create, unless its room is still held

All stages of a replica share one attempt: they cannot go on without each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from plimsoll.actuate.claims import claim_template, is_claimed
from plimsoll.actuate.pods import worker_pod, worker_pod_name
from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import Exclusion, PlanPlacement, PlanStatus, Replan, ReplicaStatus
from plimsoll.cluster.budget import RECREATE_BACKOFF, Account, account
from plimsoll.cluster.exclusions import by_basis
from plimsoll.cluster.failures import OUT_OF_MEMORY, blameless, causes_first, follows, last_failure
from plimsoll.cluster.headcount import Replicas, counted
from plimsoll.cluster.observed import CreatePod, DeletePod, Observed, OpenGate, backoff, soonest
from plimsoll.cluster.own_pods import OwnPod, at, stamp
from plimsoll.cluster.targets import Target
from plimsoll.planning.candidates import worker_requests
from plimsoll.planning.exclusions import configuration_of


def reconcile_replicas(
    observed: Observed, target: Target, revision: Revision | None, *, running: bool
) -> Replicas:
    """`revision`: the wanted one, which may not be written yet. `running` False: no pod is wanted. Nothing
    known of what is wanted leaves the pods that run alone: they serve until there is something better."""
    if not running:
        everything = tuple(_delete(pod, "no pods are wanted") for pod in _living(observed.worker_pods))
        return counted(Replicas(deletes=everything), observed, target)
    plans = [plan for plan in (target.plan, *target.older) if plan]
    if not target.known or not plans:
        return counted(Replicas(statuses=tuple(observed.accounts)), observed, target)
    planned = {plan.revision for plan in plans}
    gone = tuple(
        _delete(pod, f"revision {pod.revision} gives way to {target.update_revision}")
        for pod in _living(observed.worker_pods)
        if pod.revision not in planned
    )
    revisions = {known.name: known for known in (*observed.revisions, *([revision] if revision else ()))}
    given_up = {target.update_revision: observed.course.intent.given_up} if observed.course else {}
    rounds = [
        _Round(
            observed, plan, revisions.get(plan.revision), given_up.get(plan.revision, frozenset())
        ).result()
        for plan in plans
    ]
    found = Replicas(
        creates=tuple(create for one in rounds for create in one.creates),
        deletes=gone + tuple(delete for one in rounds for delete in one.deletes),
        opens=tuple(gate for one in rounds for gate in one.opens),
        statuses=tuple(status for one in rounds for status in one.statuses),
        exclusions=tuple({one: None for part in rounds for one in part.exclusions}),
        wake_at=soonest(*(one.wake_at for one in rounds)),
        complete=all(one.complete for one in rounds),
    )
    return counted(found, observed, target)


@dataclass(frozen=True, slots=True)
class _Broken:
    """Why the present attempt of a replica is over."""

    why: str
    due: datetime
    """When the next one may start."""
    blame: bool = False
    """It counts as a restart."""
    follows: bool = False
    """Another pod's end may explain it."""


class _Round:
    """One pass over the places of one plan."""

    def __init__(
        self,
        observed: Observed,
        plan: PlanStatus,
        revision: Revision | None,
        given_up: frozenset[int] = frozenset(),
    ) -> None:
        """`given_up`: replicas that count although they have no place."""
        self._seen, self._plan, self._revision = observed, plan, revision
        self._given_up = given_up
        self._creates: list[CreatePod] = []
        self._deletes: list[DeletePod] = []
        self._opens: list[OpenGate] = []
        self._exclusions: list[Exclusion] = []
        self._wake: list[datetime] = []
        self._missing = 0
        self._accounts = {told.replica: told for told in observed.accounts if told.revision == plan.revision}

    def result(self) -> Replicas:
        places = {
            replica: list(stages)
            for replica, stages in groupby(self._plan.placements, lambda place: place.replica)
        }
        own = [pod for pod in self._seen.worker_pods if pod.revision == self._plan.revision]
        for pod in _living(own):
            if pod.replica not in places:
                self._deletes.append(_delete(pod, f"replica {pod.replica} is not planned"))
        statuses = [
            self._replica(replica, stages, [pod for pod in own if pod.replica == replica])
            for replica, stages in places.items()
        ]
        statuses += [
            told for told in self._accounts.values() if told.replica in self._given_up and told.given_up
        ]
        return Replicas(
            creates=tuple(self._creates),
            deletes=tuple(self._deletes),
            opens=tuple(self._opens),
            statuses=tuple(sorted(statuses, key=lambda status: status.replica)),
            exclusions=tuple(self._exclusions),
            wake_at=soonest(*self._wake),
            complete=not self._missing,
        )

    def _replica(self, replica: int, places: Sequence[PlanPlacement], pods: list[OwnPod]) -> ReplicaStatus:
        told = self._accounts.get(replica)
        attempt = max([told.attempt if told else 0, *(pod.attempt for pod in pods)])
        present = [pod for pod in pods if pod.attempt == attempt]
        for pod in _living(pods):
            if pod.attempt != attempt:
                self._deletes.append(_delete(pod, f"attempt {attempt} took its place"))
        books = account(told, attempt, _living(present), self._seen.now)
        kept, broken = self._attempt(places, present, attempt)
        status = ReplicaStatus(
            revision=self._plan.revision,
            replica=replica,
            attempt=attempt,
            ready=len(kept) == len(places) and all(pod.ready for pod in kept),
            restarts=books.restarts,
            container_restarts=books.container_restarts,
            last_failure=next((found for pod in causes_first(pods) if (found := last_failure(pod))), None),
        )
        if status.last_failure is None and told and not status.ready:
            status = status.model_copy(update={"last_failure": told.last_failure})
        self._learn(told, status, present)
        if books.used_up(kept, self._most) or (broken and broken.blame and books.restarts >= self._most):
            return self._give_up(status, pods)
        if broken is None:
            self._go_on(places, kept, pods, attempt, books)
            return status
        if self._seen.now < broken.due:
            self._wake.append(broken.due)
            self._missing += 1
            return status.model_copy(update={"next_retry_time": stamp(broken.due)})
        return self._next_attempt(status, places, pods, broken)

    @property
    def _most(self) -> int:
        spec = self._seen.resource.spec
        return spec.rollout.max_restarts if spec else 0

    # --- how the present attempt stands

    def _attempt(
        self, places: Sequence[PlanPlacement], present: list[OwnPod], attempt: int
    ) -> tuple[list[OwnPod], _Broken | None]:
        """The pods that hold their places, and why the attempt is over, if it is."""
        kept: list[OwnPod] = []
        broken: list[_Broken] = []
        missing: list[PlanPlacement] = []
        for place in places:
            stage = [pod for pod in present if pod.stage == place.stage]
            pod = self._holder(stage, place)
            if pod is None and not stage and not self._was_seen(place, attempt):
                missing.append(place)
            elif fault := self._fault(pod, place):
                broken.append(fault)
            elif pod:
                kept.append(pod)
        if missing and any(not pod.gated for pod in kept) and len(places) > 1:
            broken.append(_Broken(f"stage {missing[0].stage} is gone", self._seen.now))
        causes = [fault for fault in broken if not fault.follows] or broken
        return kept, max(causes, key=lambda fault: (fault.blame, fault.due), default=None)

    def _holder(self, stage: list[OwnPod], place: PlanPlacement) -> OwnPod | None:
        """The pod of the place; others that say they are it are deleted, unless they leave by themselves."""
        right = [
            pod
            for pod in _living(stage)
            if (pod.node or pod.pinned_node) == place.node and not pod.relabelled
        ]
        holder = min(right, key=lambda pod: (pod.finished, pod.name), default=None)
        for pod in _living(stage):
            if pod is not holder:
                elsewhere = f"replica {pod.replica} belongs on node {place.node}"
                why = "its labels were changed" if pod.relabelled else elsewhere
                self._deletes.append(_delete(pod, why))
        return holder

    def _was_seen(self, place: PlanPlacement, attempt: int) -> bool:
        seen = self._seen.memory.attempts.get((self._plan.revision, place.replica, place.stage), -1)
        return seen >= attempt

    def _fault(self, pod: OwnPod | None, place: PlanPlacement) -> _Broken | None:
        now = self._seen.now
        if pod is None:
            return _Broken("its pod is gone or goes", now)
        if pod.finished:
            ended = pod.container.ended or pod.container.last_ended
            since = at(ended.time) if ended and ended.time else at(pod.created)
            if blameless(pod):
                return _Broken(f"it ended: {pod.reason or pod.phase}", since)
            known = self._accounts.get(place.replica)
            pause = backoff(1 + (known.restarts if known else 0), *RECREATE_BACKOFF)
            told = f"it ended: {pod.reason or pod.phase}"
            return _Broken(told, since + pause, blame=True, follows=follows(pod))
        return self._stranded(pod, place)

    def _stranded(self, pod: OwnPod, place: PlanPlacement) -> _Broken | None:
        """The scheduler has found no place for it for too long."""
        if not pod.unschedulable or self._policy is not Replan.ON_PLACEMENT_FAILURE:
            return None
        deadline = at(pod.unschedulable_since or pod.created) + self._seen.timing.unschedulable
        if self._seen.now < deadline:
            self._wake.append(deadline)
            return None
        until = stamp(self._seen.now + self._seen.timing.exclusion)
        self._exclusions.append(
            Exclusion(node=place.node, reason="Unschedulable", message=pod.unschedulable, until=until)
        )
        self._wake.append(self._seen.now)
        return _Broken(f"the scheduler finds no place for it: {pod.unschedulable}", self._seen.now)

    @property
    def _policy(self) -> Replan:
        spec = self._seen.resource.spec
        return spec.plan.replan if spec else Replan.MANUAL

    def _learn(self, told: ReplicaStatus | None, status: ReplicaStatus, present: Iterable[OwnPod]) -> None:
        """A configuration that ran out of memory is not tried again."""
        failure = status.last_failure
        if failure is None or failure.reason not in OUT_OF_MEMORY:
            return
        known = told.last_failure if told else None
        again = any(pod.container.failed or pod.finished for pod in present)
        if self._policy is not Replan.ON_PLACEMENT_FAILURE or (known == failure and not again):
            return
        if self._revision is None:
            return
        learned = Exclusion(
            configuration=configuration_of(self._plan),
            basis=self._revision.basis,
            reason=failure.reason,
            message=failure.message,
        )
        if learned.configuration in by_basis(self._seen.exclusions).get(learned.basis, ()):
            return
        self._exclusions.append(learned)
        self._wake.append(self._seen.now)

    # --- what follows

    def _go_on(
        self,
        places: Sequence[PlanPlacement],
        kept: list[OwnPod],
        pods: list[OwnPod],
        attempt: int,
        books: Account,
    ) -> None:
        held = {pod.stage for pod in kept}
        for place in places:
            if place.stage not in held:
                self._create(place, attempt, pods)
        if len(kept) == len(places):
            self._opens += [OpenGate(pod.name, pod.uid) for pod in kept if pod.gated]
        if books.wake_at:
            self._wake.append(books.wake_at)

    def _next_attempt(
        self, status: ReplicaStatus, places: Sequence[PlanPlacement], pods: list[OwnPod], broken: _Broken
    ) -> ReplicaStatus:
        self._leave(pods, broken.why)
        for place in places:
            self._create(place, status.attempt + 1, pods)
        return status.model_copy(
            update={
                "attempt": status.attempt + 1,
                "ready": False,
                "restarts": status.restarts + broken.blame,
                "container_restarts": 0,
            }
        )

    def _give_up(self, status: ReplicaStatus, pods: list[OwnPod]) -> ReplicaStatus:
        self._leave(pods, f"given up after {status.restarts} restarts")
        self._wake.append(self._seen.now)
        return status.model_copy(update={"given_up": True, "ready": False})

    def _leave(self, pods: Iterable[OwnPod], why: str) -> None:
        leaving = {delete.uid for delete in self._deletes}
        self._deletes += [_delete(pod, why) for pod in _living(pods) if pod.uid not in leaving]

    def _create(self, place: PlanPlacement, attempt: int, pods: Iterable[OwnPod]) -> None:
        """Unless something is in the way: a refusal that is backing off, an excluded node, or a pod that
        still holds the same room."""
        self._missing += 1
        refusal, course = self._seen.memory.refusal, self._seen.course
        if refusal and self._seen.now < refusal.retry_at:
            self._wake.append(refusal.retry_at)
            return
        excluded = any(exclusion.node == place.node for exclusion in self._exclusions)
        if excluded or (course and place.node in course.blocked) or self._revision is None:
            return
        for pod in pods:
            same_place = pod.stage == place.stage and (pod.node or pod.pinned_node) == place.node
            if same_place and not pod.finished and pod.node in self._seen.ready_nodes:
                return
        name = worker_pod_name(self._plan.revision, place.replica, place.stage, attempt)
        if name in self._seen.promised:
            return
        requests = worker_requests(self._plan, self._revision.spec, self._revision.facts)
        body = worker_pod(self._revision, self._plan, place, attempt, requests, self._seen.defaults)
        template = claim_template(self._revision, self._plan) if is_claimed(self._plan) else None
        self._creates.append(CreatePod(body, pinned=True, template=template))


def _living(pods: Iterable[OwnPod]) -> list[OwnPod]:
    return [pod for pod in pods if not pod.terminating]


def _delete(pod: OwnPod, why: str) -> DeletePod:
    return DeletePod(pod.name, pod.uid, why)
