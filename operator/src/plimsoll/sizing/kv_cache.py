"""Bytes of the KV cache by layer class.

Full attention keeps every token; a sliding window keeps window − 1 past tokens and what is in flight. Grouped
queries keep one K and V head per group, and a rank never holds less than one head, so more tensor parallelism
than KV heads stops saving. Latent attention (MLA) keeps one vector for all heads, so every rank holds it
whole. A recurrent layer keeps a state per sequence, whatever its length, divided over its heads. Sequences
fill whole blocks of the paged pool, so each is rounded up.
"""

from __future__ import annotations

from plimsoll.model.facts import LayerClass, ModelFacts, State
from plimsoll.sizing.parallel import kv_heads_per_rank
from plimsoll_worker.launch import Precision

BLOCK_TOKENS = 16
"""Tokens in a KV block unless the launch says otherwise."""


_STATE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def layer_bytes_per_token(layer: LayerClass, precision: Precision, tensor: int = 1) -> int:
    """K and V of one token in one layer on one rank, bytes; without an indexer's keys (`index_bytes`), whose
    width no precision changes."""
    return kv_heads_per_rank(layer, tensor) * (layer.key_dim + layer.value_dim) * precision.bytes


def bytes_per_token(facts: ModelFacts, precision: Precision) -> int:
    """What one more token of context costs over all layers, unsharded; layers with a window are bounded
    instead."""
    return sum(
        layer.count * layer_bytes_per_token(layer, precision)
        for layer in facts.layers
        if layer.window is None
    )


def bounded_bytes_per_sequence(facts: ModelFacts, precision: Precision) -> int:
    """What is bounded per sequence, unsharded: sliding windows at full width and recurrent state."""
    windows = sum(
        layer.count * layer.window * layer_bytes_per_token(layer, precision)
        for layer in facts.layers
        if layer.window is not None
    )
    return windows + sum(layer.count * state_bytes(layer, precision) for layer in facts.layers)


def state_bytes(layer: LayerClass, precision: Precision, tensor: int = 1) -> int:
    """Recurrent state of one sequence in one layer on one rank, bytes. `precision` is that of the states
    whose type the model leaves open."""
    return sum(-(-state.elements // tensor) * state_width(state, precision) for state in layer.states)


def state_width(state: State, precision: Precision) -> int:
    """Bytes of one element of a state; an FP8 cache leaves states in 16 bit."""
    return _STATE_BYTES.get(state.dtype, max(2, precision.bytes))


def pool_tokens(*, context: int, sequences: int, kv_tokens: int | None, block: int) -> int:
    """Tokens a pool of full-attention layers must hold: every sequence at full length, or `kv_tokens` in all.

    Never less than one sequence of `context`, and always whole blocks.
    """
    longest = _whole_blocks(context, block)
    return sequences * longest if kv_tokens is None else max(longest, _whole_blocks(kv_tokens, block))


def window_tokens(*, window: int, sequences: int, batched_tokens: int, pool: int, block: int) -> int:
    """Tokens a pool of sliding-window layers must hold.

    Each sequence keeps window − 1 past tokens, which may straddle one block more than they fill; the tokens
    in flight are shared by all sequences of a batch (vLLM's SlidingWindowSpec counts them per sequence).
    Never more than full attention would hold.
    """
    bounded = sequences * (_whole_blocks(window - 1, block) + block) + _whole_blocks(batched_tokens, block)
    return min(pool, bounded)


def _whole_blocks(tokens: int, block: int) -> int:
    return -(-tokens // block) * block
