"""Bytes per GPU by category, with the arithmetic: the number that the whole product rests on.

facts (elements) ─┐
configuration ────┼─→ footprint() ─→ stages ─→ bytes by category + the terms they are made of
workload ─────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plimsoll.model.facts import LayerClass, ModelFacts
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing import weights as held
from plimsoll.sizing.activations import layer_peak, logits_peak
from plimsoll.sizing.parallel import check_parallel, kv_heads_per_rank, split_stages
from plimsoll.sizing.runtime import RuntimeConstants, runtime_constants
from plimsoll_worker.launch import Device, MemoryCategory, Precision, PredictedMemory


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What must fit at the same time."""

    max_context_tokens: int
    """Longest sequence, prompt and answer together."""
    max_sequences: int
    """Sequences in flight."""
    max_batched_tokens: int
    """Most tokens of one forward pass: the prefill chunk."""
    kv_tokens: int | None = None
    """Tokens the KV pool holds over all sequences; None: every sequence at full length."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How the engine runs the model."""

    device: Device
    weights: Precision
    kv_cache: Precision
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_block_tokens: int = kv.BLOCK_TOKENS
    bounded_windows: bool = False
    """Whether the engine drops keys and values that have left a sliding window. Engine 0.1.0 masks and keeps
    them."""


@dataclass(frozen=True)
class Term:
    """One summand of a category, as a person would check it."""

    category: MemoryCategory
    formula: str
    """With the numbers put in."""
    bytes: int


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

    `constants`: what no closed form gives; None takes the shipped ones of the configuration's device. Raises
    ParallelRefused when the model cannot be cut as the configuration says.
    """
    check_parallel(facts, tensor=configuration.tensor_parallel, pipeline=configuration.pipeline_parallel)
    constants = constants or runtime_constants(configuration.device)
    ranges = stage_layers(facts, configuration, workload)
    stages = tuple(
        _stage(facts, configuration, workload, constants, index, layers)
        for index, layers in enumerate(ranges)
    )
    return Footprint(configuration, workload, stages)


def stage_layers(
    facts: ModelFacts, configuration: Configuration, workload: Workload
) -> tuple[tuple[int, int], ...]:
    """(first, last) layers of every stage: contiguous, and the fullest stage as small as it can be."""
    if configuration.pipeline_parallel == 1:
        return ((0, facts.layer_count),)
    costs: list[int] = []
    for layer in facts.layers:
        loaded = (
            held.layer_elements(facts, layer, configuration.tensor_parallel) * configuration.weights.bytes
        )
        cached = _pool_tokens(layer, configuration, workload) * kv.layer_bytes_per_token(
            layer, configuration.kv_cache, configuration.tensor_parallel
        )
        costs += [loaded + cached] * layer.count
    costs[0] += _outer_bytes(facts, configuration, first=True, last=False)
    costs[-1] += _outer_bytes(facts, configuration, first=False, last=True)
    costs[-1] += logits_peak(facts, rows=workload.max_sequences, precision=configuration.weights)[0]
    return split_stages(costs, configuration.pipeline_parallel)


def _stage(
    facts: ModelFacts,
    configuration: Configuration,
    workload: Workload,
    constants: RuntimeConstants,
    index: int,
    layers: tuple[int, int],
) -> StageFootprint:
    last = layers[1] == facts.layer_count
    weight_terms = _weight_terms(facts, configuration, layers)
    activation_terms = _activation_terms(facts, configuration, workload, last=last)
    overheads = _overhead_terms(
        configuration, constants, sum(t.bytes for t in weight_terms), sum(t.bytes for t in activation_terms)
    )
    terms = (*weight_terms, *_kv_terms(facts, configuration, workload, layers), *activation_terms, *overheads)
    return StageFootprint(index, layers, _predicted(terms), terms)


def _predicted(terms: Iterable[Term]) -> PredictedMemory:
    by_category: Counter[str] = Counter()
    for term in terms:
        by_category[term.category.value] += term.bytes
    names = {name: field.alias or name for name, field in PredictedMemory.model_fields.items()}
    return PredictedMemory(**{name: by_category[alias] for name, alias in names.items()})


def layers_in(facts: ModelFacts, layers: tuple[int, int]) -> Iterator[LayerClass]:
    """The layer classes of a range, each with the count that lies inside it."""
    start = 0
    for layer in facts.layers:
        inside = min(start + layer.count, layers[1]) - max(start, layers[0])
        if inside > 0:
            yield layer if inside == layer.count else layer.model_copy(update={"count": inside})
        start += layer.count


def _outer_bytes(facts: ModelFacts, configuration: Configuration, *, first: bool, last: bool) -> int:
    roles = held.outer_roles(facts, first=first, last=last)
    return held.outer_elements(facts, configuration.tensor_parallel, roles) * configuration.weights.bytes


def _weight_terms(facts: ModelFacts, configuration: Configuration, layers: tuple[int, int]) -> list[Term]:
    width = configuration.weights.bytes
    terms: list[Term] = []
    for role in held.outer_roles(facts, first=layers[0] == 0, last=layers[1] == facts.layer_count):
        elements = held.outer_elements(facts, configuration.tensor_parallel, [role])
        if elements:
            formula = f"{role.value}: {elements} × {width} B"
            terms.append(Term(MemoryCategory.WEIGHTS, formula, elements * width))
    for layer in layers_in(facts, layers):
        elements = held.layer_elements(facts, layer, configuration.tensor_parallel)
        formula = f"{layer.count} layers × {elements} × {width} B"
        terms.append(Term(MemoryCategory.WEIGHTS, formula, layer.count * elements * width))
    return terms


def _kv_terms(
    facts: ModelFacts, configuration: Configuration, workload: Workload, layers: tuple[int, int]
) -> list[Term]:
    terms: list[Term] = []
    for layer in layers_in(facts, layers):
        tokens = _pool_tokens(layer, configuration, workload)
        width = configuration.kv_cache.bytes
        heads = kv_heads_per_rank(layer, configuration.tensor_parallel)
        per_token = kv.layer_bytes_per_token(layer, configuration.kv_cache, configuration.tensor_parallel)
        kind = f" (window {layer.window})" if layer.window and configuration.bounded_windows else ""
        formula = (
            f"{tokens} tokens{kind} × {layer.count} layers × {heads} KV heads"
            f" × ({layer.key_dim} + {layer.value_dim}) × {width} B"
        )
        terms.append(Term(MemoryCategory.KV_CACHE, formula, tokens * layer.count * per_token))
    return terms


def _pool_tokens(layer: LayerClass, configuration: Configuration, workload: Workload) -> int:
    block = configuration.kv_block_tokens
    pool = kv.pool_tokens(
        context=workload.max_context_tokens,
        sequences=workload.max_sequences,
        kv_tokens=workload.kv_tokens,
        block=block,
    )
    if layer.window is None or not configuration.bounded_windows:
        return pool
    return kv.window_tokens(
        window=layer.window,
        sequences=workload.max_sequences,
        batched_tokens=workload.max_batched_tokens,
        pool=pool,
        block=block,
    )


def _activation_terms(
    facts: ModelFacts, configuration: Configuration, workload: Workload, *, last: bool
) -> list[Term]:
    size, formula = layer_peak(
        facts,
        tokens=workload.max_batched_tokens,
        context=workload.max_context_tokens,
        precision=configuration.weights,
        tensor=configuration.tensor_parallel,
    )
    terms = [Term(MemoryCategory.ACTIVATIONS, f"layer: {formula}", size)]
    if last:
        size, formula = logits_peak(facts, rows=workload.max_sequences, precision=configuration.weights)
        terms.append(Term(MemoryCategory.ACTIVATIONS, f"logits: {formula}", size))
    return terms


def _overhead_terms(
    configuration: Configuration, constants: RuntimeConstants, loaded: int, activations: int
) -> list[Term]:
    tensor, pipeline = configuration.tensor_parallel, configuration.pipeline_parallel
    slack = (
        loaded * constants.weight_slack_permille // 1000
        + activations * constants.activation_slack_percent // 100
    )
    terms = [
        Term(MemoryCategory.CUDA_GRAPHS, "none captured", constants.cuda_graphs),
        Term(
            MemoryCategory.COMMUNICATION,
            f"collectives of TP {tensor}, PP {pipeline}",
            constants.communication(tensor, pipeline),
        ),
        Term(
            MemoryCategory.RUNTIME, "context and libraries, measured", constants.context + constants.libraries
        ),
        Term(
            MemoryCategory.FRAGMENTATION,
            f"{constants.weight_slack_permille} ‰ of weights"
            f" + {constants.activation_slack_percent} % of activations",
            slack,
        ),
    ]
    return [term for term in terms if term.bytes]
