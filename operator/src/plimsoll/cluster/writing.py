"""Carries out what a round decided: resources in parallel, the actions of one in order, and not all at once.

    revision, status, pods ─► the round waits for them: the next plan must see them
    Services, old revisions ─► follow while the next round plans, and events; both give way to a rush
    status without a decision ─► at most every other second, after others' decisions and its own Services;
                                 while a start merely goes on, every five
    a resource whose writes failed ─► left alone for a while; it is planned all the same

In one queue, the Services of the first resource (the API server's slowest write) would delay the pods of the
last. Nothing is lost by waiting: what is missing is found again by the next look at the resource.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from plimsoll.actuate.apply import Ending, Executor, Result
from plimsoll.api.v1alpha1 import LLMDeploymentStatus
from plimsoll.cluster.calm import RUSH_SECONDS, Calm
from plimsoll.cluster.observed import (
    Action,
    ApplyObject,
    DeleteRevision,
    EmitEvent,
    Memory,
    Observed,
    Outcome,
    WriteStatus,
)
from plimsoll.cluster.state import ClusterView

log = logging.getLogger(__name__)

WRITERS, LATER_WRITERS = 16, 4
STATUS_SECONDS = 2.0
"""A pod that starts passes several states in a second; a status that tells progress waits for the last."""
UNDER_WAY_SECONDS = 5.0
"""Bound, pulled, started: a status that says so, and neither that it is done nor that something is wrong,
waits for what may come at once. Of our writes a status costs the API server most, a third of its CPU in a
burst (`python -m tests.bench burst` and its profile, 2026-11-23)."""
LONGEST_PAUSE_SECONDS = 60.0
LATER = (ApplyObject, DeleteRevision)

Step = tuple[Observed, Outcome]


@dataclass(frozen=True, slots=True)
class Pause:
    """A resource whose writes failed is left alone until then."""

    failures: int
    until: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A status that waits for its turn."""

    since: float
    due: float


class Writing:
    """`on_change` is called when a resource should be looked at again soon."""

    def __init__(
        self,
        executor: Executor,
        on_change: Callable[[], None],
        calm: Calm,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor, self._on_change, self._calm = executor, on_change, calm
        self._monotonic = monotonic
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._later = ThreadPoolExecutor(LATER_WRITERS, thread_name_prefix="later")
        self._lock = threading.Lock()
        self._busy: dict[str, bool] = {}
        """Resources, by uid, whose later writes are on their way; True: there was more to do meanwhile."""
        self._ended: dict[str, float] = {}
        """When their last later writes ended: a look that is older does not know of them."""
        self._pauses: dict[str, Pause] = {}
        self._told_at: dict[str, float] = {}
        self._waiting: dict[str, Waiting] = {}
        """By resource."""

    def carry_out(self, steps: Sequence[Step], view: ClusterView, seen_at: float) -> dict[str, Result]:
        """By uid. `view` is what was seen at that moment of the monotonic clock. When this returns, all that
        the next plan must see is written."""
        now = self._monotonic()
        self._forget({one.resource.uid for one, _ in steps})
        urgent = any(_decides(one, outcome) for one, outcome in steps)
        self._calm.tell(urgent=urgent)
        results: dict[str, Result] = {}
        pending: dict[str, Future[Result]] = {}
        for one, outcome in steps:
            uid = one.resource.uid
            if not outcome.actions:
                self._rest(uid, now)
                results[uid] = Result(Ending.DONE, outcome.memory)
            elif self._paused(uid, now):
                results[uid] = Result(Ending.DONE, outcome.memory)
            elif self._may_wait(one, outcome, now, seen_at, urgent=urgent):
                results[uid] = Result(Ending.DONE, outcome.memory)
                self._follow(one, outcome, view, seen_at)
            else:
                pending[uid] = self._writers.submit(self._write, one, outcome, view, seen_at)
        for uid, future in pending.items():
            results[uid] = result = future.result()
            self._judge(uid, result)
        return results

    def due(self) -> list[float]:
        """When resources that wait want another look, on the monotonic clock."""
        with self._lock:
            return [pause.until for pause in self._pauses.values()] + [
                waiting.due for waiting in self._waiting.values()
            ]

    def close(self) -> None:
        self._calm.tell(urgent=False)
        self._writers.shutdown(wait=True, cancel_futures=True)
        self._later.shutdown(wait=True, cancel_futures=True)

    def _write(self, one: Observed, outcome: Outcome, view: ClusterView, seen_at: float) -> Result:
        actions = [action for action in outcome.actions if not isinstance(action, LATER)]
        result = self._do(one, actions, outcome.memory, view)
        if result.ending is Ending.DONE:
            self._follow(one, outcome, view, seen_at)
        return result

    def _follow(self, one: Observed, outcome: Outcome, view: ClusterView, seen_at: float) -> None:
        later = [action for action in outcome.actions if isinstance(action, LATER)]
        if later and self._claim(one.resource.uid, seen_at):
            self._later.submit(self._write_later, one, later, outcome.memory, view, seen_at)

    def _claim(self, uid: str, seen_at: float) -> bool:
        with self._lock:
            if uid in self._busy:
                self._busy[uid] = True
                return False
            if self._ended.get(uid, seen_at) > seen_at:
                self._on_change()
                return False
            self._busy[uid] = False
            return True

    def _write_later(
        self, one: Observed, actions: Sequence[Action], memory: Memory, view: ClusterView, since: float
    ) -> None:
        self._calm.wait(since)
        uid = one.resource.uid
        result = self._do(one, actions, memory, view)
        with self._lock:
            more = self._busy.pop(uid) or uid in self._waiting
            self._ended[uid] = self._monotonic()
        self._judge(uid, result)
        if more:
            self._on_change()

    def _do(self, one: Observed, actions: Sequence[Action], memory: Memory, view: ClusterView) -> Result:
        if any(isinstance(action, WriteStatus) for action in actions):
            with self._lock:
                self._told_at[one.resource.uid] = self._monotonic()
        try:
            return self._executor.carry_out(one, actions, memory, view)
        except Exception as error:
            # An over-booked node, say: the fault of one resource stops that one, loudly, and no other.
            names = {"namespace": one.resource.owner.namespace, "deployment": one.resource.owner.name}
            log.exception("actions failed", extra=names)
            return Result(Ending.FAILED, memory, str(error))

    def _judge(self, uid: str, result: Result) -> None:
        with self._lock:
            pause = self._pauses.pop(uid, None)
            if result.ending is Ending.FAILED:
                failures = 1 + (pause.failures if pause else 0)
                seconds = min(0.5 * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS)
                self._pauses[uid] = Pause(failures, self._monotonic() + seconds)
        if result.ending in (Ending.OUTDATED, Ending.REFUSED):
            self._on_change()

    def _rest(self, uid: str, now: float) -> None:
        """There is nothing to write, so nothing waits, and no round is due for what has passed."""
        with self._lock:
            self._waiting.pop(uid, None)
            if (pause := self._pauses.get(uid)) and now >= pause.until:
                del self._pauses[uid]

    def _paused(self, uid: str, now: float) -> bool:
        with self._lock:
            pause = self._pauses.get(uid)
            return pause is not None and now < pause.until

    def _may_wait(self, one: Observed, outcome: Outcome, now: float, seen_at: float, *, urgent: bool) -> bool:
        """It is but a status, and the last one is not two seconds old, or there are decisions to write, or
        its Services are on their way, or stand since it was looked at, and would have to be told of in
        another one."""
        uid = one.resource.uid
        with self._lock:
            since = self._waiting[uid].since if uid in self._waiting else now
            under_way = _under_way(one, outcome)
            pause = UNDER_WAY_SECONDS if under_way else STATUS_SECONDS
            due = self._told_at.get(uid, now - pause) + pause
            outdated = self._ended.get(uid, seen_at) > seen_at
            exposing = outdated or uid in self._busy
            patient = now < since + RUSH_SECONDS
            gives_way = (urgent and patient) or (exposing and (patient or under_way))
            waits = (now < due or gives_way) and not _decides(one, outcome)
            if waits:
                self._waiting[uid] = Waiting(since, max(due, now + STATUS_SECONDS) if gives_way else due)
            else:
                self._waiting.pop(uid, None)
        if waits and outdated:
            self._on_change()
        return waits

    def _forget(self, living: set[str]) -> None:
        with self._lock:
            self._pauses = {uid: pause for uid, pause in self._pauses.items() if uid in living}
            self._told_at = {uid: at for uid, at in self._told_at.items() if uid in living}
            self._ended = {uid: at for uid, at in self._ended.items() if uid in living}
            self._waiting = {uid: since for uid, since in self._waiting.items() if uid in living}


def _decides(one: Observed, outcome: Outcome) -> bool:
    """Whether anything is to be written now but a status that tells progress, and the words about it."""
    return not all(
        isinstance(action, (EmitEvent, *LATER))
        or (isinstance(action, WriteStatus) and action.status.plans == one.resource.status.plans)
        for action in outcome.actions
    )


def _under_way(one: Observed, outcome: Outcome) -> bool:
    """Whether the status says no more than that what was going on goes on."""
    told = [action.status for action in outcome.actions if isinstance(action, WriteStatus)]
    return all(
        _says(status, "Progressing") and not _says(status, "Degraded")
        for status in (one.resource.status, *told)
    )


def _says(status: LLMDeploymentStatus, kind: str) -> bool:
    return any(found.type == kind and found.status == "True" for found in status.conditions)
