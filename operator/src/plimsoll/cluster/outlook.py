"""What happens next to a pod that does not do well.

A condition that only names a fault leaves its reader with the question whether to wait or to act, so each of
them ends with one of these sentences.

Pure: it says what the kubelet and the next rounds will do, and does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from plimsoll.api.conditions import Failure
from plimsoll.api.v1alpha1 import Replan, ReplicaStatus
from plimsoll.cluster.failures import OUT_OF_MEMORY, blameless
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import CONTAINER_REASONS, OwnPod, at, stamp


def placeless(pod: OwnPod, observed: Observed) -> str:
    """The scheduler's words about a pod that finds no place, and what follows."""
    policy, node = _policy(observed), pod.pinned_node
    if policy is Replan.ON_PLACEMENT_FAILURE:
        deadline = at(pod.unschedulable_since or pod.created) + observed.timing.unschedulable
        minutes = int(observed.timing.exclusion.total_seconds()) // 60
        after = (
            f"unless it has a place at {stamp(deadline)}, node {node} is left out for {minutes} minutes and "
            "the replica planned elsewhere"
        )
    else:
        after = (
            f"plan.replan is {policy}, so it waits for node {node}; a new value of the annotation "
            "plimsoll.dev/replan plans it anew"
        )
    return f"pod {pod.name}: {pod.unschedulable.rstrip('.')}; {after}"


def foretold(failure: Failure, pod: OwnPod, observed: Observed, statuses: Iterable[ReplicaStatus]) -> Failure:
    """The failure with what follows from it."""
    told = filter(None, (failure.message.rstrip("."), _next(failure, pod, observed, statuses)))
    return replace(failure, message="; ".join(told))


def _next(failure: Failure, pod: OwnPod, observed: Observed, statuses: Iterable[ReplicaStatus]) -> str:
    spec = observed.resource.spec
    budget = f"its replica is given up after rollout.maxRestarts ({spec.rollout.max_restarts if spec else 0})"
    if failure.reason in OUT_OF_MEMORY and _policy(observed) is Replan.ON_PLACEMENT_FAILURE:
        return "this configuration is left out from now on, and another one planned in its place"
    if failure.reason == "ImagePullBackOff":
        return "the kubelet goes on trying; where the name is wrong, write another engine.image"
    if failure.reason in CONTAINER_REASONS:
        return "the kubelet goes on trying until what it lacks is there"
    if not pod.finished:
        return f"the kubelet restarts it with growing pauses; {budget}"
    if blameless(pod):
        return "that was not its fault, so a new pod takes its place at once"
    times = (
        one.next_retry_time for one in statuses if (one.revision, one.replica) == (pod.revision, pod.replica)
    )
    retry = next(filter(None, times), None)
    return f"its replica is made anew {f'at {retry}' if retry else 'now'}; {budget}"


def _policy(observed: Observed) -> Replan:
    spec = observed.resource.spec
    return spec.plan.replan if spec else Replan.MANUAL
