"""From the decisions over all resources to the course of one.

Planning counts the pods that are about to go as holding their room, because they do: nobody else may have
it. But their own successor may, since it comes when they are gone. So a resource whose new replicas find no
room is tried again without the pods that leave, with everybody else's decision held fast; and when that is
not enough, without one old replica more, until one new one fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from plimsoll.api.v1alpha1 import PlanStatus, RolloutStrategy
from plimsoll.cluster.case import Case
from plimsoll.cluster.course import Course, Intent, Manner, one_more
from plimsoll.cluster.own_pods import OwnPod
from plimsoll.cluster.promises import Promises
from plimsoll.cluster.standing import Standing, worth
from plimsoll.planning.plan import plan
from plimsoll.planning.rejections import ENGINE_UNSUPPORTED
from plimsoll.planning.snapshot import Decision

PLANNER_FAILED = "PlannerFailed"
NO_MATTER_OF_ROOM = {ENGINE_UNSUPPORTED, PLANNER_FAILED}
"""Rejections that no replica's end would change."""


@dataclass(frozen=True, slots=True)
class _Try:
    """One way to go on."""

    intent: Intent
    decisions: Mapping[str, Decision]
    in_own_place: bool = False
    """Pods that leave were left out of the count."""


class Steering:
    """From the decisions over all resources to the course of one."""

    def __init__(self, case: Case, room: Promises, decisions: Mapping[str, Decision]) -> None:
        self._case, self._room, self._decisions = case, room, decisions

    def course(self) -> Course:
        case = self._case
        first = _Try(case.intent, self._decisions)
        if case.revision is None:
            return self._taken(first)
        if self._unplaced(first) and case.leaving(case.intent) and self._room_would_help(first):
            again = self._without_leaving(case.intent)
            first = again if self._placed(again) > self._placed(first) else first
        if not case.intent.older or case.intent.in_flight:
            return self._taken(first)
        if self._unplaced(first) and self._room_would_help(first):
            return self._taken(self._drained(case.intent) or first)
        recreates = (
            case.spec.rollout.strategy is RolloutStrategy.RECREATE
            and len(case.intent.update) < case.spec.replicas
        )
        if recreates and self._decisions[case.uid].plan and not self._unplaced(first):
            return self._taken(self._drained(one_more(case.intent)) or first)
        return self._taken(first)

    def _drained(self, intent: Intent) -> _Try | None:
        """The fewest old replicas less that make room for all of `intent`; None when none or all of them
        do not."""
        surge = self._case.spec.rollout.strategy is RolloutStrategy.SURGE
        going = sorted(
            (one for one in intent.older if one.failed or not surge),
            key=lambda one: worth(one, self._case.free),
        )
        if not going:
            return None
        everything = self._without_leaving(_less(intent, going))
        if self._unplaced(everything):
            return None
        for count in range(1, len(going)):
            found = self._without_leaving(_less(intent, going[:count]))
            if not self._unplaced(found):
                return found
        return everything

    def _without_leaving(self, intent: Intent) -> _Try:
        """Plans one resource into the room of its own pods that leave. Everybody else keeps what was just
        decided, and asks for nothing more."""
        case = self._case
        rest = self._room.promised().without(case.uid, case.leaving(intent))
        answers = plan(rest.snapshot(case.requests(intent, rest.priorities).values()))
        return _Try(intent, answers, in_own_place=True)

    def _unplaced(self, tried: _Try) -> Sequence[int]:
        return tried.decisions[self._case.uid].unplaced_replicas

    def _placed(self, tried: _Try) -> int:
        return len({place.replica for place in tried.decisions[self._case.uid].placements})

    def _room_would_help(self, tried: _Try) -> bool:
        rejection = tried.decisions[self._case.uid].rejection
        return rejection is not None and rejection.reason not in NO_MATTER_OF_ROOM

    # --- in words

    def _taken(self, tried: _Try) -> Course:
        case = self._case
        decision = tried.decisions.get(case.uid)
        leaving = case.leaving(tried.intent)
        older = {
            name: self._older(name, replicas, tried.decisions)
            for name, replicas in tried.intent.kept().items()
        }
        superseded = any(pod.revision != case.update for pod in leaving)
        if decision and decision.rejection and decision.plan and (tried.intent.older or superseded):
            placed = {place.replica for place in decision.placements}
            if len(placed) + len(tried.intent.older) >= case.spec.replicas and case.intent.in_flight:
                # One more than was asked for finds no room now; the roll-out goes on without it.
                decision = Decision(decision.plan)
        manner = self._manner(tried, decision, superseded=superseded)
        return Course(
            decision=decision,
            intent=tried.intent,
            older={name: plan for name, plan in older.items() if plan},
            manner=manner,
            message=self._words(manner, tried.intent.older),
            blocked=self._blocked(leaving) if tried.in_own_place else frozenset(),
        )

    def _older(
        self, name: str, replicas: tuple[int, ...], decisions: Mapping[str, Decision]
    ) -> PlanStatus | None:
        """The places that are decided; those that were, where planning has no answer."""
        decision = decisions.get(self._case.key(name))
        if decision and decision.plan:
            return decision.plan
        told = self._case.told.get(name)
        if told is None:
            return None
        places = [place for place in told.placements if place.replica in replicas]
        return told.model_copy(update={"placements": places})

    def _blocked(self, leaving: Iterable[OwnPod]) -> frozenset[str]:
        """What a pod on a lost node held is gone with it."""
        nodes = {pod.node or pod.pinned_node for pod in leaving}
        return frozenset(nodes & self._case.observed.ready_nodes)

    def _manner(self, tried: _Try, decision: Decision | None, *, superseded: bool) -> Manner:
        older = len(tried.intent.older)
        if not older and not superseded:
            return Manner.STEADY
        placed = len({place.replica for place in decision.placements}) if decision else 0
        if not placed:
            return Manner.WAIT
        return Manner.SURGE if placed + older > self._case.spec.replicas else Manner.RECREATE

    def _words(self, manner: Manner, older: Sequence[Standing]) -> str:
        case = self._case
        names = " and ".join(sorted({one.revision for one in older})) or "older replicas"
        if manner is Manner.SURGE:
            return (
                f"revision {case.update} replaces {names}: there is room for one replica more, so an old one "
                "stops only when a new one answers"
            )
        if manner is Manner.RECREATE:
            recreates = case.spec.rollout.strategy is RolloutStrategy.RECREATE
            why = "rollout.strategy is Recreate" if recreates else "there is no room for one replica more"
            drain, asked = case.spec.rollout.drain_seconds, case.spec.replicas
            return (
                f"revision {case.update} replaces {names}: {why}, so an old one stops first, within "
                f"{drain} s, and its successor starts in its place; of {asked} asked for, "
                f"{sum(one.ready for one in older)} old ones go on meanwhile"
            )
        if manner is Manner.WAIT and case.revision:
            surge = case.spec.rollout.strategy is RolloutStrategy.SURGE
            waits = "; rollout.strategy is Surge, so none that answers stops for it" if surge else ""
            return f"revision {case.update} has no place yet{waits}; {names} go on"
        return f"{names} go on" if manner is Manner.WAIT else ""


def _less(intent: Intent, going: Iterable[Standing]) -> Intent:
    gone = set(going)
    return replace(intent, older=tuple(one for one in intent.older if one not in gone))
