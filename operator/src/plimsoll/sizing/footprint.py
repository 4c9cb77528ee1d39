"""Bytes per GPU by category, with the arithmetic: the number that the whole product rests on.

facts (elements) ─┐
configuration ────┼─→ footprint() ─→ stages ─→ bytes by category + the terms they are made of
workload ─────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.configuration import Configuration, Term, Workload
from plimsoll.sizing.parallel import check_parallel, split_stages
from plimsoll.sizing.quantized import check_blocks, check_groups
from plimsoll.sizing.runtime import RuntimeConstants, runtime_constants
from plimsoll.sizing.terms import RankTerms
from plimsoll_worker.launch import PredictedMemory

__all__ = ["Configuration", "Footprint", "StageFootprint", "Term", "Workload", "footprint", "stage_layers"]

_FIELDS = {field.alias or name: name for name, field in PredictedMemory.model_fields.items()}


@dataclass(frozen=True)
class StageFootprint:
    """One pipeline stage: what its fullest rank holds."""

    stage: int
    layers: tuple[int, int]
    """First (inclusive) and last (exclusive)."""
    bytes: PredictedMemory
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        return self.bytes.total


@dataclass(frozen=True)
class Footprint:
    """All stages of one replica."""

    configuration: Configuration
    workload: Workload
    stages: tuple[StageFootprint, ...]

    @property
    def worst(self) -> StageFootprint:
        """The stage that decides which GPU is large enough."""
        return max(self.stages, key=lambda stage: stage.total)


def footprint(
    facts: ModelFacts,
    configuration: Configuration,
    workload: Workload,
    constants: RuntimeConstants | None = None,
) -> Footprint:
    """Bytes by category on the fullest rank of every stage.

    `constants`: what no closed form gives; None takes the shipped ones of its device. Raises ParallelRefused
    when the model cannot be cut as the configuration says.
    """
    check_parallel(facts, tensor=configuration.tensor_parallel, pipeline=configuration.pipeline_parallel)
    if configuration.scheme is not None:
        check_groups(facts, configuration.scheme, configuration.tensor_parallel)
    if configuration.stored and facts.format == "gguf":
        check_blocks(facts, configuration.tensor_parallel)
    constants = constants or runtime_constants(configuration.device)
    rank = RankTerms(facts, configuration, workload, constants)
    # By identity: stages of the same layers share their terms.
    summed: dict[int, PredictedMemory] = {}
    stages = []
    for index, layers in enumerate(_ranges(rank)):
        terms = rank.terms(layers)
        if id(terms) not in summed:
            summed[id(terms)] = _predicted(terms)
        stages.append(StageFootprint(index, layers, summed[id(terms)], terms))
    return Footprint(configuration, workload, tuple(stages))


def stage_layers(
    facts: ModelFacts, configuration: Configuration, workload: Workload
) -> tuple[tuple[int, int], ...]:
    """(first, last) layers of every stage: contiguous, and the fullest stage as small as it can be."""
    return _ranges(RankTerms(facts, configuration, workload, runtime_constants(configuration.device)))


def _ranges(rank: RankTerms) -> tuple[tuple[int, int], ...]:
    stages = rank.configuration.pipeline_parallel
    return ((0, rank.facts.layer_count),) if stages == 1 else split_stages(rank.layer_costs(), stages)


def _predicted(terms: Iterable[Term]) -> PredictedMemory:
    by_category: Counter[str] = Counter()
    for term in terms:
        by_category[term.category.value] += term.bytes
    return PredictedMemory(**{name: by_category[alias] for alias, name in _FIELDS.items()})
