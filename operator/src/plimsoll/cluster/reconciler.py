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
from dataclasses import replace
from datetime import datetime

from plimsoll import garbage, metrics
from plimsoll.actuate.apply import Executor
from plimsoll.cluster.calm import Calm
from plimsoll.cluster.course import Course
from plimsoll.cluster.decisions import LastPlan, Room, decide
from plimsoll.cluster.informer import Backoff
from plimsoll.cluster.kube import DEPLOYMENTS, Kube, KubeError
from plimsoll.cluster.leader import Leader
from plimsoll.cluster.lifecycle import next_actions
from plimsoll.cluster.observation import Observer, Terms
from plimsoll.cluster.observed import Memory, Observed, Outcome
from plimsoll.cluster.profiles import ProfileKeeper
from plimsoll.cluster.reports import Reports
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.state import ClusterState, ClusterView
from plimsoll.cluster.trigger import Trigger
from plimsoll.cluster.verification import unread
from plimsoll.cluster.writing import Writing
from plimsoll.health import Heartbeat

log = logging.getLogger(__name__)

UNSYNCED_SECONDS = 0.2
"""How often an actor that may not plan yet looks whether it may."""
LONGEST_SLEEP_SECONDS = 5.0
"""The heart beats at least this often."""


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
        leader: Leader,
        calm: Calm,
        profiles: ProfileKeeper,
        terms: Terms,
        *,
        synced: Callable[[], bool],
        replan_seconds: float,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._state, self._ledger = kube, state, ledger
        self._reports, self._trigger, self._heartbeat, self._terms = reports, trigger, heartbeat, terms
        self._leader, self._term, self._profiles = leader, 0, profiles
        self._synced, self._replan_seconds = synced, replan_seconds
        self._clock, self._monotonic = clock, monotonic
        self._memories: dict[str, Memory] = {}
        self._settled: dict[str, tuple[Observed, Outcome]] = {}
        self._last_plan = LastPlan()
        self._relist_at = 0.0
        self._backoff = Backoff()
        self._writing = Writing(executor, trigger.fire, calm, monotonic=monotonic)

    def run(self) -> None:
        """Until the trigger is stopped. Nothing but a stop ends the loop: a round that fails is told, and the
        next one starts afresh."""
        wake_at = self._monotonic()
        while self._trigger.wait(min(wake_at, self._monotonic() + LONGEST_SLEEP_SECONDS)):
            self._heartbeat.beat()
            if not self._synced() or not self._leader.leading():
                wake_at = self._monotonic() + UNSYNCED_SECONDS
                continue
            if self._term != self._leader.term:
                self._begin(self._leader.term)
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
        self._writing.close()

    def _begin(self, term: int) -> None:
        """Like a fresh start: what this copy remembers may be older than what another one did meanwhile."""
        self._term = term
        self._memories, self._settled, self._relist_at = {}, {}, 0.0

    def _failed(self) -> float:
        metrics.ROUNDS.labels("failed").inc()
        return self._monotonic() + self._backoff.next()

    def round(self) -> float:
        """One pass over everything. Returns in how many seconds the next is due though nothing happens."""
        started = self._monotonic()
        if relists := started >= self._relist_at:
            # kopf keeps no list that is compared: what was deleted while its watch was down is found here.
            self._state.resources.replace(*self._kube.list(DEPLOYMENTS))
            self._relist_at = started + self._replan_seconds
            self._settled, self._last_plan = {}, LastPlan()
        view = self._state.snapshot()
        self._ledger.settle(view.pods, started, view.pods_listed_at)
        observed = self._observe(view)
        settled = [(one, self._settled_outcome(one)) for one in observed]
        steps = [(one, outcome or _step(one)) for one, outcome in settled]
        self._settled = {one.resource.uid: (one, outcome) for one, outcome in steps}
        results = self._writing.carry_out(steps, view, started)
        self._memories = {uid: result.memory for uid, result in results.items()}
        self._reports.ask(unread(pod for one in observed for pod in one.worker_pods))
        stirred = [one for one, outcome in settled if outcome is None]
        self._profiles.write(stirred, view.profiles, view.nodes, self._clock())
        if relists:
            garbage.collect_and_set_aside()
        return self._next_in([outcome for _, outcome in steps], started)

    def _observe(self, view: ClusterView) -> list[Observed]:
        """Everything about every resource, the plan of this round included."""
        now = self._clock()
        observer = Observer(view, self._ledger.held(), self._reports.answers(), self._terms, now)
        observed = [
            observer.observe(resource, self._memories.get(resource.uid, Memory()))
            for _, resource in sorted(view.resources.items())
        ]
        facts = {revision.facts.revision: revision.facts for revision in view.revisions.values()}
        profiles = self._profiles.believed(view.profiles, facts, now)
        with metrics.PLAN_SECONDS.time():
            room = Room(view.nodes, observer.pods, view.priorities, profiles)
            decisions = decide(observed, room, self._last_plan)
        _count(decisions)
        return [replace(one, course=decisions.get(one.resource.uid)) for one in observed]

    def _settled_outcome(self, one: Observed) -> Outcome | None:
        """What is to be done about a resource stays the same while nothing about it changes and no deadline
        of its own passes; with every list, everything is looked at afresh."""
        if settled := self._settled.get(one.resource.uid):
            before, outcome = settled
            waits = outcome.wake_at is None or one.now < outcome.wake_at
            if waits and replace(before, now=one.now) == one:
                return outcome
        return None

    def _next_in(self, outcomes: Sequence[Outcome], started: float) -> float:
        """Seconds to the nearest deadline."""
        clock, now = self._clock(), self._monotonic()
        waits = [self._relist_at - now]
        waits += [(outcome.wake_at - clock).total_seconds() for outcome in outcomes if outcome.wake_at]
        writes = self._writing.due()
        metrics.WRITES_WAITING.set(len(writes))
        waits += [due - now for due in writes]
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


def _count(courses: Mapping[str, Course]) -> None:
    for course in courses.values():
        metrics.PLANS.labels(course.rejection.reason if course.rejection else "Planned").inc()
