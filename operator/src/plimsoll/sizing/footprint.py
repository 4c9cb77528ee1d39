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
    stored: bool = False
    """Weights stay as a quantized checkpoint holds them; `weights` is then the precision of everything
    else."""
    kv_block_tokens: int = kv.BLOCK_TOKENS
    bounded_windows: bool = False
    """Whether the engine drops keys and values that have left a sliding window. Engine 0.1.0 masks and keeps
    them."""

    @property
    def widened(self) -> Precision | None:
        """The precision that weights are widened to; None: as stored."""
        return None if self.stored else self.weights


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
        loaded = held.layer_bytes(facts, layer, configuration.tensor_parallel, configuration.widened)
        costs += [loaded + _cached(layer, configuration, workload)] * layer.count
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
    return held.outer_bytes(facts, configuration.tensor_parallel, roles, configuration.widened)


def _weight_terms(facts: ModelFacts, configuration: Configuration, layers: tuple[int, int]) -> list[Term]:
    tensor, precision = configuration.tensor_parallel, configuration.widened
    terms: list[Term] = []
    for role in held.outer_roles(facts, first=layers[0] == 0, last=layers[1] == facts.layer_count):
        size = held.outer_bytes(facts, tensor, [role], precision)
        if size:
            terms.append(Term(MemoryCategory.WEIGHTS, f"{role.value}: {_held(size, precision)}", size))
    alike: dict[int, int] = {}
    for layer in layers_in(facts, layers):
        size = held.layer_bytes(facts, layer, tensor, precision)
        alike[size] = alike.get(size, 0) + layer.count
    for size, count in alike.items():
        formula = f"{count} layers × {_held(size, precision)}"
        terms.append(Term(MemoryCategory.WEIGHTS, formula, count * size))
    return terms


def _held(size: int, precision: Precision | None) -> str:
    return f"{size} B as stored" if precision is None else f"{size // precision.bytes} × {precision.bytes} B"


def _kv_terms(
    facts: ModelFacts, configuration: Configuration, workload: Workload, layers: tuple[int, int]
) -> list[Term]:
    """Layers that cache alike are one term, however different their weights."""
    alike: dict[LayerClass, int] = {}
    for layer in layers_in(facts, layers):
        key = layer.model_copy(update={"count": 1, "groups": ()})
        alike[key] = alike.get(key, 0) + layer.count
    terms: list[Term] = []
    for layer, count in alike.items():
        terms += _layer_kv_terms(layer.model_copy(update={"count": count}), configuration, workload)
    return terms


def _layer_kv_terms(layer: LayerClass, configuration: Configuration, workload: Workload) -> list[Term]:
    tensor, precision = configuration.tensor_parallel, configuration.kv_cache
    terms: list[Term] = []
    if layer.kv_heads:
        tokens = _pool_tokens(layer, configuration, workload)
        held_in_full = "" if configuration.bounded_windows else ", kept in full"
        kind = f" (window {layer.window}{held_in_full})" if layer.window else ""
        formula = f"{tokens} tokens{kind} × {layer.count} layers × {_cached_token(layer, tensor, precision)}"
        per_token = kv.layer_bytes_per_token(layer, precision, tensor) + layer.index_bytes
        terms.append(Term(MemoryCategory.KV_CACHE, formula, tokens * layer.count * per_token))
    for state in layer.states:
        elements, width = -(-state.elements // tensor), kv.state_width(state, configuration.weights)
        formula = f"{workload.max_sequences} sequences × {layer.count} layers × {elements} state × {width} B"
        size = workload.max_sequences * layer.count * elements * width
        terms.append(Term(MemoryCategory.KV_CACHE, formula, size))
    return terms


def _cached_token(layer: LayerClass, tensor: int, precision: Precision) -> str:
    if not layer.value_dim:
        told = f"{layer.key_dim} latent × {precision.bytes} B"
    else:
        heads = kv_heads_per_rank(layer, tensor)
        told = f"{heads} KV heads × ({layer.key_dim} + {layer.value_dim}) × {precision.bytes} B"
    return f"({told} + {layer.index_bytes} B of the indexer)" if layer.index_bytes else told


def _cached(layer: LayerClass, configuration: Configuration, workload: Workload) -> int:
    """Cache bytes of one layer of the class on one rank."""
    terms = _layer_kv_terms(layer.model_copy(update={"count": 1}), configuration, workload)
    return sum(term.bytes for term in terms)


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
