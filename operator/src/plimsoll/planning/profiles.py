"""Finds what was measured for an option that planning looks at.

A profile speaks for its own model, engine and product alone, and only to deployments of its namespace, unless
it lies in the operator's: whoever may write there may tell everybody. Of several that speak, the nearest by
shards and token budget is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from plimsoll.api.v1alpha1.profile import Fingerprint, MemoryProfileStatus
from plimsoll.planning.formats import Formats
from plimsoll.sizing.configuration import Configuration, Workload
from plimsoll.sizing.profile import StageProfile
from plimsoll_worker.launch import MeasuredMemory, PredictedMemory


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """A MemoryProfile as planning reads it."""

    namespace: str
    """Empty: for every namespace."""
    fingerprint: Fingerprint
    profile: StageProfile


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose option is sized."""

    namespace: str
    model_revision: str
    image: str
    """Worker image of the revision."""
    product: str
    """GPU product of the option; empty on CPU."""


class Profiles:
    """All that is stored, by what it speaks for."""

    def __init__(self, stored: Iterable[StoredProfile], engine_version: str) -> None:
        self._by_subject: dict[tuple[str, str, str, str], list[StoredProfile]] = defaultdict(list)
        for one in stored:
            mark = one.fingerprint
            if mark.engine_version == engine_version:
                subject = (one.namespace, mark.model_revision, mark.image, mark.product)
                self._by_subject[subject].append(one)

    def nearest(
        self, asker: Asker, configuration: Configuration, workload: Workload
    ) -> dict[int, StageProfile]:
        """The profile of each stage that speaks for the configuration, by stage; empty where none does. What
        the namespace itself measured comes before what holds for everybody."""
        found: dict[int, StageProfile] = {}
        if not self._by_subject:
            return found
        for namespace in ("", asker.namespace):
            subject = (namespace, asker.model_revision, asker.image, asker.product)
            speaking = [
                one.profile
                for one in self._by_subject.get(subject, ())
                if one.profile.stands_for(configuration)
            ]
            # The nearest comes last, and stays.
            speaking.sort(key=lambda profile: profile.distance(configuration, workload), reverse=True)
            found |= {profile.stage: profile for profile in speaking}
        return found


def stage_profile(fingerprint: Fingerprint, status: MemoryProfileStatus) -> StageProfile:
    """What sizing takes of a MemoryProfile."""
    formats = Formats(
        fingerprint.weights, fingerprint.compute, fingerprint.kv_cache, fingerprint.checkpoint_format
    )
    return StageProfile(
        stage=fingerprint.stage,
        measured=None if status.bytes is None else attributed(status.bytes),
        configuration=formats.configuration(
            fingerprint.device, fingerprint.tensor_parallel, fingerprint.pipeline_parallel
        ),
        workload=Workload(
            max_context_tokens=fingerprint.max_context_tokens,
            max_sequences=fingerprint.max_concurrent_sequences,
            max_batched_tokens=fingerprint.max_batched_tokens,
            kv_tokens=status.kv_cache_tokens or None,
        ),
        margin=status.margin_bytes,
    )


def attributed(measured: MeasuredMemory) -> PredictedMemory:
    """A ledger without a rest: what it could not attribute is there all the same, so `runtime` pays for
    it."""
    named = measured.model_dump(exclude={"unattributed"})
    named["runtime"] += max(0, measured.unattributed)
    return PredictedMemory(**named)
