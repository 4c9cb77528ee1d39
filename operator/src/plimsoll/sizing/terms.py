"""The terms of one rank: weights, KV cache, activations and overheads of the layers that a stage holds.

What does not depend on the stage (a layer's bytes, the activations of the widest layer) is computed once for
all stages: planning asks for thousands of footprints.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from plimsoll.model.facts import LayerClass, ModelFacts, Role
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing import weights as held
from plimsoll.sizing.activations import layer_peak, logits_peak, rounding_peak
from plimsoll.sizing.configuration import Configuration, Term, Workload
from plimsoll.sizing.parallel import kv_heads_per_rank
from plimsoll.sizing.quantized import layer_parts
from plimsoll.sizing.runtime import RuntimeConstants
from plimsoll.sizing.schemes import Quantized, Stored
from plimsoll_worker.launch import Device, MemoryCategory, Precision, graph_sizes, prompt_graph_sizes

CROSSING_BUFFERS = 2
"""Each way of a stage has so many: one is filled while the other is read."""


class RankTerms:
    """What the fullest rank holds of any range of layers."""

    def __init__(
        self,
        facts: ModelFacts,
        configuration: Configuration,
        workload: Workload,
        constants: RuntimeConstants,
    ) -> None:
        self.facts = facts
        self.configuration = configuration
        self._workload = workload
        self._constants = constants
        self._known: dict[tuple[bool, bool, tuple[tuple[int, int], ...]], tuple[Term, ...]] = {}

    def terms(self, layers: tuple[int, int]) -> tuple[Term, ...]:
        """Every term of the layers from first (inclusive) to last (exclusive). Stages of the same layers
        share them."""
        first, last = layers[0] == 0, layers[1] == self.facts.layer_count
        key = (first, last, tuple(self._inside(layers)))
        if key not in self._known:
            self._known[key] = tuple(self._summands(layers, first=first, last=last))
        return self._known[key]

    def _summands(self, layers: tuple[int, int], *, first: bool, last: bool) -> Iterator[Term]:
        weights = list(self._weights(layers, first=first, last=last))
        yield from weights
        yield from self._cache(layers)
        yield from self._activations(last=last)
        yield from self._crossing(first=first, last=last)
        loaded = sum(term.bytes for term in weights)
        peaks = sum(term.bytes for term in (self._layer_activations, *([self._logits] if last else [])))
        yield from self._overheads(loaded, peaks)

    def _activations(self, *, last: bool) -> list[Term]:
        """A GPU's allocator hands the blocks of one peak to the other; a CPU's does not."""
        peaks = [self._layer_activations, *([self._logits] if last else [])]
        if self.configuration.device is Device.CPU:
            return peaks
        return [max(peaks, key=lambda term: term.bytes)]

    def _crossing(self, *, first: bool, last: bool) -> Iterator[Term]:
        """Hidden states between stages (`plimsoll_worker.parallel.crossing`): on the device those that came;
        a CPU's memory has the buffers of both ways too."""
        copies = 0 if first else 1
        if self.configuration.device is Device.CPU:
            copies += CROSSING_BUFFERS * ((not first) + (not last))
        if copies:
            tokens = max(self._workload.max_batched_tokens, self._workload.max_sequences)
            width = self.configuration.weights.bytes
            told = f"between stages: {copies} × {tokens} tokens × {self.facts.hidden} hidden × {width} B"
            yield Term(MemoryCategory.ACTIVATIONS, told, copies * tokens * self.facts.hidden * width)

    def layer_costs(self) -> list[int]:
        """Bytes of weights and cache of each layer, what only the first and the last stage hold counted into
        the first and last layer."""
        costs: list[int] = []
        for layer, loaded in zip(self.facts.layers, self._loaded, strict=True):
            cached = sum(size for _, size in self._layer_cache(layer))
            costs += [loaded + cached] * layer.count
        costs[0] += sum(size for _, size in self._outer(first=True, last=False))
        costs[-1] += sum(size for _, size in self._outer(first=False, last=True))
        costs[-1] += self._logits.bytes
        return costs

    @cached_property
    def _loaded(self) -> tuple[int, ...]:
        """Bytes of one layer of each class."""
        tensor, precision = self.configuration.tensor_parallel, self.configuration.kept
        return tuple(held.layer_bytes(self.facts, layer, tensor, precision) for layer in self.facts.layers)

    def _inside(self, layers: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """(index, count) of the layer classes in a range."""
        start = 0
        for index, layer in enumerate(self.facts.layers):
            count = min(start + layer.count, layers[1]) - max(start, layers[0])
            if count > 0:
                yield index, count
            start += layer.count

    def _outer(self, *, first: bool, last: bool) -> Iterator[tuple[Role, int]]:
        tensor, precision = self.configuration.tensor_parallel, held.unquantized(self.configuration.kept)
        for role in held.outer_roles(self.facts, first=first, last=last):
            yield role, held.outer_bytes(self.facts, tensor, [role], precision)

    def _weights(self, layers: tuple[int, int], *, first: bool, last: bool) -> Iterator[Term]:
        precision = held.unquantized(self.configuration.kept)
        for role, size in self._outer(first=first, last=last):
            if size:
                yield Term(MemoryCategory.WEIGHTS, f"{role.value}: {_held(size, precision)}", size)
        alike: dict[tuple[str, int], int] = {}
        for index, count in self._inside(layers):
            size = self._loaded[index]
            told = self._quantized(index) or _held(size, precision)
            alike[told, size] = alike.get((told, size), 0) + count
        for (told, size), count in alike.items():
            yield Term(MemoryCategory.WEIGHTS, f"{count} layers × {told}", count * size)

    def _quantized(self, index: int) -> str:
        """What a layer holds in the scheme and what beside it; empty where nothing is quantized."""
        kept, tensor = self.configuration.kept, self.configuration.tensor_parallel
        if isinstance(kept, Stored):
            held_in = held.stored_parts(self.facts, self.facts.layers[index], tensor, kept.rest)
            return f"({' + '.join(f'{size} B {told}' for told, size in held_in.items())})"
        if not isinstance(kept, Quantized):
            return ""
        layer, scheme = self.facts.layers[index], kept.scheme
        parts = layer_parts(self.facts, layer, tensor, kept)
        return (
            f"({parts.quantized} × {scheme.bits} bit {scheme.name} + {parts.scale_bytes} B of scales"
            f" + {parts.rest} × {kept.rest.bytes} B kept in {kept.rest})"
        )

    def _cache(self, layers: tuple[int, int]) -> Iterator[Term]:
        """Layers that cache alike are one term, however different their weights."""
        alike: dict[tuple[str, int], int] = {}
        for index, count in self._inside(layers):
            for told in self._cached[index]:
                alike[told] = alike.get(told, 0) + count
        for (formula, size), count in alike.items():
            yield Term(MemoryCategory.KV_CACHE, formula.format(layers=count), count * size)

    @cached_property
    def _cached(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        return tuple(tuple(self._layer_cache(layer)) for layer in self.facts.layers)

    def _layer_cache(self, layer: LayerClass) -> Iterator[tuple[str, int]]:
        """(formula with a place for the number of layers, bytes) of what one layer caches."""
        tensor, precision = self.configuration.tensor_parallel, self.configuration.kv_cache
        if layer.kv_heads:
            tokens = self._pool_tokens(layer)
            held_in_full = "" if self.configuration.bounded_windows else ", kept in full"
            kind = f" (window {layer.window}{held_in_full})" if layer.window else ""
            per_token = kv.layer_bytes_per_token(layer, precision, tensor) + layer.index_bytes
            told = _cached_token(layer, tensor, precision)
            yield f"{tokens} tokens{kind} × {{layers}} layers × {told}", tokens * per_token
        for state in layer.states:
            elements, width = -(-state.elements // tensor), kv.state_width(state, self.configuration.weights)
            sequences = self._workload.max_sequences
            told = f"{sequences} sequences × {{layers}} layers × {elements} state × {width} B"
            yield told, sequences * elements * width

    def _pool_tokens(self, layer: LayerClass) -> int:
        block, workload = self.configuration.kv_block_tokens, self._workload
        pool = kv.pool_tokens(
            context=workload.max_context_tokens,
            sequences=workload.max_sequences,
            kv_tokens=workload.kv_tokens,
            block=block,
        )
        if layer.window is None or not self.configuration.bounded_windows:
            return pool
        return kv.window_tokens(
            window=layer.window,
            sequences=workload.max_sequences,
            batched_tokens=workload.max_batched_tokens,
            pool=pool,
            block=block,
        )

    def _layer_peak(self, tokens: int) -> tuple[int, str]:
        return layer_peak(
            self.facts,
            tokens=tokens,
            context=self._workload.max_context_tokens,
            precision=self.configuration.weights,
            tensor=self.configuration.tensor_parallel,
            device=self.configuration.device,
        )

    @cached_property
    def _layer_activations(self) -> Term:
        size, formula = self._layer_peak(self._workload.max_batched_tokens)
        matrices = self._matrices
        if matrices is not None and self.configuration.device is Device.GPU:
            more, told = rounding_peak(
                self.facts, tokens=self._workload.max_batched_tokens, matrices=matrices
            )
            size, formula = size + more, f"{formula} + {told}" if more else formula
        return Term(MemoryCategory.ACTIVATIONS, f"layer: {formula}", size)

    @property
    def _matrices(self) -> Precision | None:
        """What matrices have, where it is fewer bits than the computation."""
        if self.configuration.scheme is not None:
            return Precision(self.configuration.scheme.name)
        if not self.configuration.stored:
            return None
        if self.facts.format == "gguf":  # all its blocks are in groups, and made wide as INT4 is
            return Precision.INT4
        return None if self.facts.packed is None else Precision(self.facts.packed.precision)

    @cached_property
    def _logits(self) -> Term:
        size, formula = logits_peak(
            self.facts,
            rows=self._workload.max_sequences,
            precision=self.configuration.weights,
            device=self.configuration.device,
        )
        return Term(MemoryCategory.ACTIVATIONS, f"logits: {formula}", size)

    def _graphs(self) -> tuple[int, str]:
        """Bytes of captured steps, and the formula: their pool holds the activations of the longest."""
        decoding = graph_sizes(self._workload.max_sequences)
        prompts = prompt_graph_sizes(self._workload.max_batched_tokens)
        sizes = len(decoding) + len(prompts)
        size = self._constants.cuda_graphs(sizes)
        told = f"steps of {sizes} {'size' if sizes == 1 else 'sizes'}, measured"
        if self.configuration.device is Device.CPU or not prompts:
            return size, told
        tokens = prompts[-1]
        return size + self._layer_peak(tokens)[0], f"{told}, + a layer's peak of {tokens} tokens"

    def _overheads(self, loaded: int, peaks: int) -> Iterator[Term]:
        constants = self._constants
        tensor = self.configuration.tensor_parallel
        slack = (
            loaded * constants.weight_slack_permille // 1000
            + peaks * constants.activation_slack_percent // 100
        )
        told = (
            f"{constants.weight_slack_permille} ‰ of weights"
            f" + {constants.activation_slack_percent} % of the peaks of layer and logits"
        )
        graphs, told_of_graphs = self._graphs()
        for category, formula, size in (
            (
                MemoryCategory.CUDA_GRAPHS,
                told_of_graphs,
                graphs,
            ),
            (
                MemoryCategory.COMMUNICATION,
                f"collectives of TP {tensor}",
                constants.communication(tensor),
            ),
            (
                MemoryCategory.RUNTIME,
                "context and libraries, measured",
                constants.context + constants.libraries,
            ),
            (MemoryCategory.FRAGMENTATION, told, slack),
        ):
            if size:
                yield Term(category, formula, size)


def _held(size: int, precision: Precision | None) -> str:
    return f"{size} B as stored" if precision is None else f"{size // precision.bytes} × {precision.bytes} B"


def _cached_token(layer: LayerClass, tensor: int, precision: Precision) -> str:
    if not layer.value_dim:
        told = f"{layer.key_dim} latent × {precision.bytes} B"
    else:
        heads = kv_heads_per_rank(layer, tensor)
        told = f"{heads} KV heads × ({layer.key_dim} + {layer.value_dim}) × {precision.bytes} B"
    return f"({told} + {layer.index_bytes} B of the indexer)" if layer.index_bytes else told
