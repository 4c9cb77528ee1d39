"""What workers measured, and what it says of a configuration that is to be planned.

    measured bytes of a stage's fullest rank ──┐
    closed form where it was measured ─────────┼─→ bytes of the wanted configuration, category by category
    closed form of what is wanted ─────────────┘

Each category moves as its closed form moves: the cache by tokens, activations by the token budget, weights by
the shard, and what no closed form gives (context, graphs) stays as measured. So the same configuration gets
exactly what was measured, and a neighbour only the terms scaled that its difference touches. Replacing the
constants alone was the alternative; it would repeat every error of a closed form that was already measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.configuration import Configuration, Term, Workload
from plimsoll.sizing.footprint import Footprint, StageFootprint, footprint
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll_worker.launch import MemoryCategory, PredictedMemory

EXACT_PERCENT = 10
"""How far a ledger's weights and cache may be from their closed forms."""
MOST_BYTES = 16 << 30
"""Of any category that has no exact closed form."""


@dataclass(frozen=True, kw_only=True)
class StageProfile:
    """The ledger of the fullest rank of one stage, and what was run when it was written."""

    stage: int
    measured: PredictedMemory | None
    """Bytes by category; what the ledger could not attribute is counted into `runtime`. None: only that it
    ran out of memory is known, and the closed form stands."""
    configuration: Configuration
    workload: Workload
    """With `kv_tokens` as the pool really held."""
    margin: int = 0
    """Bytes that planning keeps free beside the measured ones, until they are trusted."""

    def stands_for(self, configuration: Configuration) -> bool:
        """Whether the bytes of `configuration` follow from these: everything that closed forms do not scale
        is the same."""
        mine = self.configuration
        return (
            mine.device is configuration.device
            and mine.kept == configuration.kept
            and mine.kv_cache == configuration.kv_cache
            and mine.pipeline_parallel == configuration.pipeline_parallel
        )

    def distance(self, configuration: Configuration, workload: Workload) -> tuple[int, int, int]:
        """How far off, for choosing the nearest of several profiles; (0, 0, 0) is the same run."""
        return (
            abs(self.configuration.tensor_parallel - configuration.tensor_parallel),
            abs(self.workload.max_batched_tokens - workload.max_batched_tokens),
            abs(self.workload.max_sequences - workload.max_sequences),
        )


def measured_footprint(
    facts: ModelFacts,
    configuration: Configuration,
    workload: Workload,
    profiles: Mapping[int, StageProfile],
) -> Footprint:
    """Bytes by category from what was measured; a stage without a profile keeps its closed form.

    `profiles`: by stage, each one that `stands_for` the configuration. Raises ParallelRefused when the model
    cannot be cut as the configuration says.
    """
    closed = footprint(facts, configuration, workload)
    stages = tuple(_stage(facts, stage, profiles.get(stage.stage)) for stage in closed.stages)
    return Footprint(configuration, workload, stages)


def _stage(facts: ModelFacts, wanted: StageFootprint, profile: StageProfile | None) -> StageFootprint:
    if profile is None or profile.measured is None:
        return wanted
    there = footprint(facts, profile.configuration, profile.workload).stages[profile.stage].bytes
    values: dict[str, int] = {}
    terms: list[Term] = []
    for name, field in PredictedMemory.model_fields.items():
        found, at, now = (getattr(source, name) for source in (profile.measured, there, wanted.bytes))
        values[name], told = _followed(found, at, now)
        if values[name]:
            terms.append(Term(MemoryCategory(field.alias or name), told, values[name]))
    return StageFootprint(wanted.stage, wanted.layers, PredictedMemory(**values), tuple(terms))


def _followed(found: int, at: int, now: int) -> tuple[int, str]:
    """Bytes, and how they come about: `found` was measured where the closed form is `at`, and it is `now`
    where they are wanted."""
    if at == now:
        return found, "measured"
    if at == 0:
        # One GPU has no collectives: what two need was not measured.
        return found + now, f"{found} B measured + {now} B by the closed form"
    return -(-found * now // at), f"{found} B measured × {now} / {at} by the closed form"


def contradiction(facts: ModelFacts, profile: StageProfile) -> str:
    """Why the ledger cannot be one of this model in this configuration, in words; empty when it can. Weights
    and cache have exact closed forms, and no context takes more than a small GPU."""
    if profile.measured is None:
        return ""
    try:
        stages = footprint(facts, profile.configuration, profile.workload).stages
    except ParallelRefused as error:
        return str(error)
    if profile.stage >= len(stages):
        return f"stage {profile.stage} of {len(stages)}"
    there = stages[profile.stage].bytes
    for name in ("weights", "kv_cache"):
        found, computed = getattr(profile.measured, name), getattr(there, name)
        if abs(found - computed) * 100 > computed * EXACT_PERCENT:
            return f"{name} is {found} bytes where the model has {computed}"
    for name in ("activations", "cuda_graphs", "communication", "runtime", "fragmentation"):
        if (found := getattr(profile.measured, name)) > MOST_BYTES:
            return f"{name} is {found} bytes, more than {MOST_BYTES}"
    return ""
