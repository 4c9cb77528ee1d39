"""The course of a roll-out: which replicas of which revision have pods next, and why. Pure data, and the rule
for the next step.

    older revisions      as many replicas as the new revision does not answer for yet
    the wanted revision  all that were asked for; while older ones stand, only so many that there is one more
                         replica than asked for (surge), or none more (recreate)

So a new replica answers before an old one goes wherever one more has a place. Where none has, `steering`
takes old replicas away until a new one fits, and their successor follows when they are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus, RolloutStrategy
from plimsoll.cluster.standing import Standing, most_worth
from plimsoll.planning.snapshot import Decision, Rejection


class Manner(StrEnum):
    """How replicas are being replaced."""

    STEADY = "Steady"
    SURGE = "Surging"
    RECREATE = "Recreating"
    WAIT = "WaitingForRoom"


@dataclass(frozen=True, slots=True)
class Intent:
    """Which replicas are to have pods, before planning has found places for them."""

    update: tuple[int, ...]
    """Of the wanted revision."""
    older: tuple[Standing, ...]
    """Of older revisions."""
    in_flight: bool
    """A replica of the wanted revision has been given a place and does not answer yet."""
    given_up: frozenset[int] = frozenset()
    """Of the wanted revision: they count, and get no place."""

    @property
    def placed(self) -> tuple[int, ...]:
        """Those of the wanted revision that need a place."""
        return tuple(replica for replica in self.update if replica not in self.given_up)

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Replicas of older revisions, by revision."""
        found: dict[str, tuple[int, ...]] = {}
        for one in self.older:
            found[one.revision] = (*found.get(one.revision, ()), one.replica)
        return found


@dataclass(frozen=True, slots=True)
class Course:
    """What was decided for one resource."""

    decision: Decision | None
    """For the wanted revision; None while the model is not known."""
    intent: Intent
    older: Mapping[str, PlanStatus] = field(default_factory=dict)
    """Plans of the older revisions that stay, with the places that stay."""
    manner: Manner = Manner.STEADY
    message: str = ""
    """What will be done next, and why so."""
    blocked: frozenset[str] = frozenset()
    """Nodes where new pods wait until old ones of the same resource are gone."""

    @property
    def rejection(self) -> Rejection | None:
        return self.decision.rejection if self.decision else None


def intend(
    found: Iterable[Standing], spec: LLMDeploymentSpec, update: str, free: Mapping[str, int]
) -> Intent:
    """The next step. `update`: the wanted revision, empty while it is not known. `free`: GPUs by node."""
    asked = spec.replicas
    new = [one for one in found if one.revision == update]
    old = [one for one in found if one.revision != update and one.places]
    answering = sum(one.ready for one in new)
    kept = most_worth(old, asked - min(answering, asked), free)
    most = asked if spec.rollout.strategy is RolloutStrategy.RECREATE else asked + 1
    count = asked if not kept else min(asked, max(most - len(kept), len(new)))
    chosen = most_worth(new, count, free)
    numbers = {one.replica for one in chosen}
    fresh = (number for number in range(asked + len(numbers)) if number not in numbers)
    numbers |= {number for number, _ in zip(fresh, range(count - len(numbers)), strict=False)}
    return Intent(
        update=tuple(sorted(numbers)) if update else (),
        older=tuple(kept),
        in_flight=any(not one.ready for one in chosen),
        given_up=frozenset(one.replica for one in chosen if not one.places),
    )


def one_more(intent: Intent) -> Intent:
    """With room made for the next replica of the wanted revision."""
    number = next(number for number in range(len(intent.update) + 1) if number not in intent.update)
    return Intent(tuple(sorted((*intent.update, number))), intent.older, intent.in_flight, intent.given_up)
