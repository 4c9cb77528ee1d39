"""KV bytes by layer class and per rank, in whole blocks."""

from __future__ import annotations

import pytest
from tests.unit.sizing.shapes import LLAMA_8B, LLAMA_70B, SMOLLM2, facts_of

from plimsoll.sizing import kv_cache as kv
from plimsoll_worker.launch import Precision


@pytest.mark.parametrize(
    ("name", "expected"),
    [(LLAMA_8B, 131_072), (LLAMA_70B, 327_680), (SMOLLM2, 23_040), ("Qwen/Qwen3-32B", 262_144)],
)
def test_bytes_of_a_token_over_all_layers(name: str, expected: int) -> None:
    assert kv.bytes_per_token(facts_of(name), Precision.BF16) == expected
    assert kv.bytes_per_token(facts_of(name), Precision.FP32) == 2 * expected


@pytest.mark.parametrize(("tensor", "expected"), [(1, 4096), (4, 1024), (8, 512), (16, 512)])
def test_a_rank_never_holds_less_than_one_head(tensor: int, expected: int) -> None:
    layer = facts_of(LLAMA_70B).layers[0]
    assert kv.layer_bytes_per_token(layer, Precision.BF16, tensor) == expected


def test_a_sliding_window_is_bounded_per_sequence_and_does_not_grow() -> None:
    facts = facts_of("mistralai/Mistral-7B-Instruct-v0.3", sliding_window=4096)
    assert kv.bytes_per_token(facts, Precision.BF16) == 0
    assert kv.bounded_bytes_per_sequence(facts, Precision.BF16) == 4096 * 131_072


def test_every_sequence_fills_whole_blocks() -> None:
    assert kv.pool_tokens(context=17, sequences=3, kv_tokens=None, block=16) == 96
    assert kv.pool_tokens(context=17, sequences=3, kv_tokens=40, block=16) == 48
    assert kv.pool_tokens(context=100, sequences=3, kv_tokens=40, block=16) == 112


def test_a_window_pool_keeps_the_window_and_what_is_in_flight() -> None:
    bounded = kv.window_tokens(window=128, sequences=4, batched_tokens=100, pool=10**6, block=16)
    assert bounded == 4 * (128 + 16) + 112
    assert kv.window_tokens(window=128, sequences=4, batched_tokens=100, pool=300, block=16) == 300
