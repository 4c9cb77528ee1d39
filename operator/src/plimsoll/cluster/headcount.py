"""How many replicas there are, how they are, and what troubles them: the part of status that is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from plimsoll.api.conditions import Failure
from plimsoll.api.v1alpha1 import Exclusion, ReplicaStatus
from plimsoll.cluster.failures import causes_first, failing, starting
from plimsoll.cluster.observed import CreatePod, DeletePod, Observed, OpenGate, Place
from plimsoll.cluster.outlook import foretold, placeless
from plimsoll.cluster.own_pods import OwnPod
from plimsoll.cluster.silence import unreachable
from plimsoll.cluster.targets import Target, plans_in_force


@dataclass(frozen=True, slots=True)
class Replicas:
    """What is to be done, and what there is."""

    creates: tuple[CreatePod, ...] = ()
    deletes: tuple[DeletePod, ...] = ()
    opens: tuple[OpenGate, ...] = ()
    statuses: tuple[ReplicaStatus, ...] = ()
    existing: int = 0
    """Replicas with a living pod, of any revision."""
    ready: int = 0
    updated: int = 0
    updated_scheduled: int = 0
    updated_ready: int = 0
    unschedulable: str = ""
    starting: str = ""
    """Until when a pod may load."""
    failures: tuple[Failure, ...] = ()
    given_up: tuple[Failure, ...] = ()
    away: tuple[Failure, ...] = ()
    """Pods on nodes that are not ready."""
    exclusions: tuple[Exclusion, ...] = ()
    """New ones."""
    attempts: Mapping[Place, int] = field(default_factory=dict)
    wake_at: datetime | None = None
    complete: bool = True
    """Every planned place has its pod."""


def counted(found: Replicas, observed: Observed, target: Target) -> Replicas:
    """Adds the counts, the troubles and the attempts seen: they are about pods that are there, whatever is
    planned."""
    stages = {name: plan.pipeline_parallel for name, plan in plans_in_force(observed).items()}
    living = [pod for pod in observed.worker_pods if not pod.terminating and not pod.finished]
    by_replica: dict[tuple[str, int], list[OwnPod]] = {}
    for pod in living:
        by_replica.setdefault((pod.revision, pod.replica), []).append(pod)
    updated = target.plan.revision if target.plan else ""
    whole = {which: len(pods) >= stages.get(which[0], 1) for which, pods in by_replica.items()}
    ready = {which for which, pods in by_replica.items() if whole[which] and all(pod.ready for pod in pods)}
    bound = {which for which, pods in by_replica.items() if whole[which] and all(pod.node for pod in pods)}
    known = {revision.name for revision in observed.revisions}
    attempts = {place: seen for place, seen in observed.memory.attempts.items() if place[0] in known}
    for pod in observed.worker_pods:
        place = (pod.revision, pod.replica, pod.stage)
        attempts[place] = max(pod.attempt, attempts.get(place, 0))
    away = {pod.uid: told for pod in living if (told := unreachable(pod, observed))}
    failures = [
        foretold(told, pod, observed, found.statuses)
        for pod in causes_first(observed.worker_pods)
        if not pod.terminating and pod.uid not in away and (told := failing(pod))
    ]
    return replace(
        found,
        existing=len(by_replica),
        ready=len(ready),
        updated=sum(revision == updated for revision, _ in by_replica),
        updated_scheduled=sum(revision == updated for revision, _ in bound),
        updated_ready=sum(revision == updated for revision, _ in ready),
        unschedulable=next((placeless(pod, observed) for pod in living if pod.unschedulable), ""),
        starting=next((until for pod in living if (until := starting(pod))), ""),
        failures=tuple(failures),
        away=tuple(away.values()),
        given_up=tuple(_last_words(status) for status in found.statuses if status.given_up),
        attempts=attempts,
    )


def _last_words(status: ReplicaStatus) -> Failure:
    told = status.last_failure
    tried = "1 restart" if status.restarts == 1 else f"{status.restarts} restarts"
    again = (
        f"replica {status.replica} is given up after {tried} (rollout.maxRestarts); a changed spec or a new "
        "value of the annotation plimsoll.dev/retry tries again"
    )
    if told is None:
        return Failure("RestartBudgetExhausted", again, "")
    return Failure(told.reason, f"{told.message}; {again}", told.pod)
