"""How plans are used and how replicas are replaced: nothing in here changes what is in a pod, but the drain
time."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from plimsoll.api.v1alpha1.fields import Model


class PlanMode(StrEnum):
    """Whether a plan starts pods."""

    APPLY = "Apply"
    PLAN_ONLY = "PlanOnly"


class Replan(StrEnum):
    """What may change a plan."""

    ON_SPEC_CHANGE = "OnSpecChange"
    ON_PLACEMENT_FAILURE = "OnPlacementFailure"
    MANUAL = "Manual"


class PlanPolicy(Model):
    """How plans are used."""

    mode: PlanMode = PlanMode.APPLY
    """Apply starts worker pods. PlanOnly writes the plan to status and starts none. Default: Apply."""
    replan: Replan = Replan.ON_PLACEMENT_FAILURE
    """What changes the plan. OnPlacementFailure: a change of the spec, a node that does not take a pod, and a
    configuration that ran out of memory. OnSpecChange: a change of the spec alone. Manual: a new value of the
    annotation plimsoll.dev/replan, until then a changed spec waits. A replica whose node is lost is placed
    anew in any case. Default: OnPlacementFailure."""


class RolloutStrategy(StrEnum):
    """Which comes first, the end of the old replica or the start of the new one."""

    AUTO = "Auto"
    SURGE = "Surge"
    RECREATE = "Recreate"


class Rollout(Model):
    """How replicas are replaced, and how often a failing one is tried again."""

    strategy: RolloutStrategy = RolloutStrategy.AUTO
    """Surge: a new replica answers before an old one stops; it waits for room. Recreate: an old replica
    stops, then its successor starts in its place, one by one. Auto: Surge where there is room for one more
    replica, else Recreate. Default: Auto."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    """Time that a stopping worker has to finish running requests, in seconds. Default: 120."""
    progress_deadline_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """Time without progress after which Progressing turns False with reason ProgressDeadlineExceeded, in
    seconds. What serves goes on serving. Default: 1800, and more for models that take longer to load."""
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 5
    """Restarts of a failing replica, in place or anew, before it is given up. Evictions and lost nodes do not
    count, and ten minutes of answering make earlier restarts good. A new value of the annotation
    plimsoll.dev/retry starts the count again, as a change of the spec does. Default: 5."""
