"""What one forward pass moves and computes: bytes read and operations done by the busiest rank, all stages in
a row.

Counted from the same facts and with the same cuts as the bytes of `sizing`, so that memory and time are told
of one and the same configuration. Work is exact where a closed form exists; time is `latency`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.model.facts import LayerClass, ModelFacts, Role
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing import weights as held
from plimsoll.sizing.configuration import Configuration
from plimsoll.sizing.parallel import rank_share
from plimsoll.sizing.quantized import GATED, SHARED_WIDTHS, widths_of

_NOT_MULTIPLIED = frozenset({Role.NORM, Role.EXPERT})
"""Norms are read and hardly computed; experts are counted by what a token passes."""


@dataclass(frozen=True, slots=True)
class _Cache:
    """What layers that cache alike read for one sequence."""

    layers: int
    window: int | None
    bytes_per_token: int
    state_bytes: int
    """Of one sequence, read and written back."""
    operations_per_key: int
    """Of one query against one key: the score and its part of the sum."""


class ForwardPass:
    """One configuration's work, for any number of tokens."""

    def __init__(self, facts: ModelFacts, configuration: Configuration) -> None:
        self.layers = facts.layer_count
        self.hidden_bytes = facts.hidden * configuration.weights.bytes
        """Of one token between two layers: what collectives and stages exchange."""
        tensor = configuration.tensor_parallel
        self._caches = tuple(_cache(facts, layer, configuration) for layer in facts.layers)
        self._head_elements = -(-facts.vocab // tensor) * facts.hidden
        self._dense_bytes = held.outer_bytes(
            facts,
            tensor,
            held.outer_roles(facts, first=facts.tied, last=True),
            held.unquantized(configuration.kept),
        )
        self._dense_elements = self._expert_bytes = self._expert_elements = 0
        for layer in facts.layers:
            self._count(facts, layer, configuration)
        share = _routed_elements(facts) / tensor if self._expert_elements else 0.0
        sparse = sum(layer.count for layer in facts.layers if _experts(layer))
        self._passed = min(self._expert_elements, int(share * sparse))
        """Elements of the experts that one token passes."""

    def _count(self, facts: ModelFacts, layer: LayerClass, configuration: Configuration) -> None:
        tensor, kept = configuration.tensor_parallel, configuration.kept
        bare = layer.model_copy(
            update={"groups": tuple(g for g in layer.groups if g.role is not Role.EXPERT)}
        )
        dense = held.layer_bytes(facts, bare, tensor, kept)
        self._dense_bytes += layer.count * dense
        self._expert_bytes += layer.count * (held.layer_bytes(facts, layer, tensor, kept) - dense)
        for group in layer.groups:
            mine, of = rank_share(group, facts, layer, tensor)
            elements = layer.count * -(-group.elements * mine // of)
            if group.role is Role.EXPERT:
                self._expert_elements += elements
            elif group.role not in _NOT_MULTIPLIED:
                self._dense_elements += elements

    def weight_bytes(self, tokens: int) -> int:
        """Read by a pass over `tokens`. Of the routed experts as many as so many tokens are expected to
        choose when each chooses evenly: 1 − (1 − passed / all) ^ tokens."""
        if not self._expert_elements:
            return self._dense_bytes
        missed = (1 - self._passed / self._expert_elements) ** tokens
        return self._dense_bytes + int(self._expert_bytes * (1 - missed))

    def cache_bytes(self, context: int) -> int:
        """Read to append one token to a sequence of `context` tokens."""
        return sum(
            cache.layers * (min(context, cache.window or context) * cache.bytes_per_token + cache.state_bytes)
            for cache in self._caches
        )

    def matrix_operations(self, tokens: int, rows: int) -> int:
        """Of the layers over `tokens`, and of the head over `rows` that are sampled."""
        return 2 * (tokens * (self._dense_elements + self._passed) + rows * self._head_elements)

    def attention_operations(self, context: int) -> int:
        """Of one query at the end of `context` tokens."""
        return sum(
            cache.layers * min(context, cache.window or context) * cache.operations_per_key
            for cache in self._caches
        )

    def prompt_operations(self, prompt: int) -> int:
        """Of the attention of a whole prompt: every token against those before it."""
        return sum(
            cache.layers * _pairs(prompt, cache.window) * cache.operations_per_key for cache in self._caches
        )


def _cache(facts: ModelFacts, layer: LayerClass, configuration: Configuration) -> _Cache:
    tensor, cached = configuration.tensor_parallel, configuration.kv_cache
    per_token = kv.layer_bytes_per_token(layer, cached, tensor) + layer.index_bytes
    # Latent attention reads its values out of the cached keys.
    widths = layer.key_dim + (layer.value_dim or layer.key_dim)
    return _Cache(
        layers=layer.count,
        window=layer.window,
        bytes_per_token=per_token,
        state_bytes=2 * kv.state_bytes(layer, configuration.weights, tensor),
        operations_per_key=2 * (facts.heads // tensor) * widths if layer.kv_heads else 0,
    )


def _pairs(prompt: int, window: int | None) -> int:
    """(query, key) pairs of causal attention over a prompt: n² / 2, a window bounds each query."""
    inside = min(prompt, window or prompt)
    return inside * (inside + 1) // 2 + (prompt - inside) * inside


def _experts(layer: LayerClass) -> bool:
    return any(group.role is Role.EXPERT for group in layer.groups)


def _routed_elements(facts: ModelFacts) -> int:
    """Elements of the routed experts of one layer that one token passes. Shared experts are part of
    `expert_width`, and are counted with the dense matrices."""
    shared = sum(widths_of(facts, *SHARED_WIDTHS))
    return GATED * facts.hidden * max(0, facts.expert_width - shared)
