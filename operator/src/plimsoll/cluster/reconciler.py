"""The planner actor: one loop that turns what is into what should be, for all resources together.

    trigger ─ debounce ─► every feed synced? ─► frozen snapshot ─► observe ─► plan
       ▲                                                                       │
       │                                              carry out ◄─ next actions┘
       └── feeds, kopf's events, answers of workers, deadlines, and every minute in any case

There is one plan at a time, over the whole cluster, because GPUs are shared: a handler per resource with a
lock around planning would make N plans for N events, in the order of their arrival. The loop keeps nothing
that it cannot lose: `Memory` holds back-offs and exclusions, everything else is in the API.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from plimsoll import metrics
from plimsoll.actuate.apply import Ending, Executor, Result
from plimsoll.cluster.decisions import Room, decide
from plimsoll.cluster.informer import Backoff
from plimsoll.cluster.kube import DEPLOYMENTS, Kube, KubeError
from plimsoll.cluster.lifecycle import next_actions
from plimsoll.cluster.observation import Observer, Terms
from plimsoll.cluster.observed import Memory, Observed, Outcome
from plimsoll.cluster.reports import Reports
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.state import ClusterState, ClusterView
from plimsoll.cluster.trigger import Trigger
from plimsoll.cluster.verification import unread
from plimsoll.health import Heartbeat
from plimsoll.planning.snapshot import Decision

log = logging.getLogger(__name__)

UNSYNCED_SECONDS = 0.2
"""How often an actor that may not plan yet looks whether it may."""
LONGEST_SLEEP_SECONDS = 5.0
"""The heart beats at least this often."""
WRITERS = 8


@dataclass(frozen=True, slots=True)
class Pause:
    """A resource whose writes failed is left alone for a while; it is planned all the same."""

    failures: int
    until: float


class Reconciler:
    def __init__(
        self,
        kube: Kube,
        state: ClusterState,
        ledger: Ledger,
        executor: Executor,
        reports: Reports,
        trigger: Trigger,
        heartbeat: Heartbeat,
        terms: Terms,
        *,
        synced: Callable[[], bool],
        replan_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._state, self._ledger, self._executor = kube, state, ledger, executor
        self._reports, self._trigger, self._heartbeat, self._terms = reports, trigger, heartbeat, terms
        self._synced, self._replan_seconds = synced, replan_seconds
        self._clock, self._monotonic = clock, monotonic
        self._memories: dict[str, Memory] = {}
        self._pauses: dict[str, Pause] = {}
        self._relist_at = 0.0
        self._backoff = Backoff()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")

    def run(self) -> None:
        """Until the trigger is stopped. Nothing but a stop ends the loop: a round that fails is told, and the
        next one starts afresh."""
        wake_at = self._monotonic()
        while self._trigger.wait(min(wake_at, self._monotonic() + LONGEST_SLEEP_SECONDS)):
            self._heartbeat.beat()
            if not self._synced():
                wake_at = self._monotonic() + UNSYNCED_SECONDS
                continue
            try:
                wake_at = self._monotonic() + self.round()
                self._backoff.reset()
                metrics.ROUNDS.labels("done").inc()
            except KubeError as error:
                log.warning("round failed: %s", error.message)
                wake_at = self._failed()
            except Exception:
                log.exception("round failed")
                wake_at = self._failed()
        self._writers.shutdown(wait=True, cancel_futures=True)

    def _failed(self) -> float:
        metrics.ROUNDS.labels("failed").inc()
        return self._monotonic() + self._backoff.next()

    def round(self) -> float:
        """One pass over everything. Returns in how many seconds the next is due though nothing happens."""
        started = self._monotonic()
        if started >= self._relist_at:
            # kopf keeps no list that is compared: what was deleted while its watch was down is found here.
            objects, _ = self._kube.list(DEPLOYMENTS)
            self._state.resources.replace(objects)
            self._relist_at = started + self._replan_seconds
        view = self._state.snapshot()
        self._ledger.settle(view.pods, started)
        observed = self._observe(view)
        outcomes = [(one, _step(one)) for one in observed]
        results = self._carry_out(outcomes, view)
        self._remember(results)
        self._reports.ask(unread(pod for one in observed for pod in one.worker_pods))
        return self._next_in([outcome for _, outcome in outcomes], started)

    def _observe(self, view: ClusterView) -> list[Observed]:
        """Everything about every resource, the plan of this round included."""
        now = self._clock()
        observer = Observer(view, self._ledger.views(), self._reports.answers(), self._terms, now)
        observed = [
            observer.observe(resource, self._memories.get(resource.uid, Memory()))
            for _, resource in sorted(view.resources.items())
        ]
        with metrics.PLAN_SECONDS.time():
            decisions = decide(observed, Room(view.nodes, observer.pods, view.priorities))
        _count(decisions)
        return [replace(one, decision=decisions.get(one.resource.uid)) for one in observed]

    def _carry_out(
        self, outcomes: Sequence[tuple[Observed, Outcome]], view: ClusterView
    ) -> list[tuple[Observed, Result]]:
        """Resources in parallel, the actions of one in order."""
        now = self._monotonic()

        def work(one: Observed, outcome: Outcome) -> Result:
            pause = self._pauses.get(one.resource.uid)
            if not outcome.actions or (pause and now < pause.until):
                return Result(Ending.DONE, outcome.memory)
            try:
                return self._executor.carry_out(one, outcome.actions, outcome.memory, view)
            except Exception as error:
                # An over-booked node, say: the fault of one resource stops that one, loudly, and no other.
                log.exception("actions failed", extra=_names(one))
                return Result(Ending.FAILED, outcome.memory, str(error))

        pending = [(one, self._writers.submit(work, one, outcome)) for one, outcome in outcomes]
        return [(one, future.result()) for one, future in pending]

    def _remember(self, results: Sequence[tuple[Observed, Result]]) -> None:
        now = self._monotonic()
        self._memories = {one.resource.uid: result.memory for one, result in results}
        pauses: dict[str, Pause] = {}
        for one, result in results:
            uid = one.resource.uid
            pause = self._pauses.get(uid)
            if pause and now < pause.until:
                pauses[uid] = pause
            elif result.ending is Ending.FAILED:
                failures = 1 + (pause.failures if pause else 0)
                pauses[uid] = Pause(failures, now + min(0.5 * 2 ** min(failures, 10), 60.0))
            elif result.ending in (Ending.OUTDATED, Ending.REFUSED):
                self._trigger.fire()
        self._pauses = pauses

    def _next_in(self, outcomes: Sequence[Outcome], started: float) -> float:
        """Seconds to the nearest deadline."""
        clock, now = self._clock(), self._monotonic()
        waits = [self._relist_at - now]
        waits += [(outcome.wake_at - clock).total_seconds() for outcome in outcomes if outcome.wake_at]
        waits += [pause.until - now for pause in self._pauses.values()]
        if (due := self._reports.next_due()) is not None:
            waits.append(due - now)
        # A deadline that has passed and changes nothing must not become a busy loop.
        return max(min(waits), UNSYNCED_SECONDS, started - now)


def _step(one: Observed) -> Outcome:
    """What to do about one resource; nothing when working that out fails, so that the others go on."""
    try:
        return next_actions(one)
    except Exception:
        log.exception("no step for this resource", extra=_names(one))
        metrics.ROUNDS.labels("faulty").inc()
        return Outcome((), one.memory)


def _names(one: Observed) -> dict[str, str]:
    return {"namespace": one.resource.owner.namespace, "deployment": one.resource.owner.name}


def _count(decisions: Mapping[str, Decision]) -> None:
    for decision in decisions.values():
        metrics.PLANS.labels(decision.rejection.reason if decision.rejection else "Planned").inc()
