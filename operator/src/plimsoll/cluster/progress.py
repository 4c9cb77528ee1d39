"""Whether a deployment gets anywhere, and since when it has not.

Progress is a change in how many replicas of the wanted revision answer, or in what is wanted. A pod that is
made anew, or restarts, is none: else a crash loop would look like progress for ever. The moment stands in
status, because conditions keep only the time of their last flip.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from plimsoll.actuate.pods import startup_seconds
from plimsoll.api.v1alpha1 import LLMDeploymentStatus
from plimsoll.cluster.headcount import Replicas
from plimsoll.cluster.inspection import Inspection
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import at, stamp
from plimsoll.cluster.targets import Target

LEAST_SECONDS = 1800
IMAGE_SECONDS = 600
"""For what comes before the model is loaded: an image of 25 GB over 50 MB/s."""


def last_progress(observed: Observed, target: Target, replicas: Replicas) -> str:
    """RFC 3339."""
    before = observed.resource.status
    same = (
        before.observed_generation == observed.resource.generation
        and before.update_revision == target.update_revision
        and before.updated_ready_replicas == replicas.updated_ready
        and not observed.retrying
    )
    return before.last_progress_time if same and before.last_progress_time else stamp(observed.now)


def allowed(observed: Observed, inspection: Inspection | None) -> timedelta:
    """Without progress: what the spec says, else what loading the model takes at worst."""
    spec = observed.resource.spec
    if spec and spec.rollout.progress_deadline_seconds is not None:
        return timedelta(seconds=spec.rollout.progress_deadline_seconds)
    facts = inspection.facts if inspection else None
    stages = max((plan.pipeline_parallel for plan in observed.resource.status.plans), default=1)
    loading = startup_seconds(facts.checkpoint_bytes, stages) + IMAGE_SECONDS if facts else 0
    return timedelta(seconds=max(LEAST_SECONDS, loading))


def lateness(observed: Observed, inspection: Inspection | None, since: str) -> str:
    """Words once nothing has got better for longer than allowed; empty before."""
    limit = allowed(observed, inspection)
    if observed.now < at(since) + limit:
        return ""
    return f"no progress since {since}, longer than {int(limit.total_seconds())} s"


def deadline(observed: Observed, inspection: Inspection, status: LLMDeploymentStatus) -> datetime | None:
    """When lateness is to be told; None when it is, or nothing is under way."""
    moving = any(one.type == "Progressing" and one.status == "True" for one in status.conditions)
    if not moving or not status.last_progress_time:
        return None
    return at(status.last_progress_time) + allowed(observed, inspection)
