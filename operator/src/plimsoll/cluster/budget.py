"""How often a replica has failed, and whether it is tried again.

The count stands in status, written before anything is done about a failure, so a restarted operator neither
forgets nor counts twice. Restarts in place are the kubelet's, which goes on while the operator is away; they
are read off the pods. Time spent answering makes earlier failures good: a worker that falls over once a week
must not be given up after five weeks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from plimsoll.api.v1alpha1 import ReplicaStatus
from plimsoll.cluster.observed import soonest
from plimsoll.cluster.own_pods import OwnPod, at

RUNS_WELL = timedelta(minutes=10)
"""After this time of answering, earlier restarts are made good. The kubelet forgets its own back-off after
the same time (kubernetes `docs/concepts/workloads/pods/pod-lifecycle.md`, container restart policy)."""
RECREATE_BACKOFF = timedelta(seconds=10), timedelta(minutes=5)
"""Between the end of a pod that does not restart in place and its successor."""


@dataclass(frozen=True, slots=True)
class Account:
    """What is held against one replica."""

    restarts: int
    container_restarts: int
    """Of the present attempt's pods, all counted in `restarts`."""
    wake_at: datetime | None = None
    """When the restarts are made good."""

    def used_up(self, pods: Sequence[OwnPod], most: int) -> bool:
        """Whether the pods, restarting in place, have failed once too often."""
        if all(pod.ready for pod in pods):
            return False
        failed = any(pod.container.failed for pod in pods)
        return self.restarts > most or (failed and self.restarts >= most)


def account(previous: ReplicaStatus | None, attempt: int, pods: Sequence[OwnPod], now: datetime) -> Account:
    """`pods`: of the present attempt."""
    told = sum(pod.container.restarts for pod in pods)
    counted = previous.container_restarts if previous and previous.attempt == attempt else 0
    restarts = (previous.restarts if previous else 0) + max(0, told - counted)
    since = _answers_since(pods)
    if not restarts or since is None:
        return Account(restarts, told)
    good_at = since + RUNS_WELL
    return Account(0, told) if now >= good_at else Account(restarts, told, soonest(good_at))


def _answers_since(pods: Sequence[OwnPod]) -> datetime | None:
    if not pods or not all(pod.ready and pod.ready_since for pod in pods):
        return None
    return max(at(pod.ready_since) for pod in pods)
