"""Our own quantization on load: bytes by hand, what stays in 16 bit, and cuts through groups of scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.sizing.shapes import LLAMA_8B, SMOLLM2, facts_of, on_gpu, workload
from tests.unit.sizing.test_properties import PUBLISHED, models, several

from plimsoll.model.facts import ModelFacts, Role
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing.footprint import Configuration, footprint
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll.sizing.quantized import layer_parts, matrices
from plimsoll.sizing.schemes import FP8, INT4, INT8, SCHEMES, QuantizationScheme, Quantized
from plimsoll.sizing.weights import loaded_bytes
from plimsoll_worker.launch import Precision, WeightsScheme

LAYER = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096
ROWS = (4096 + 2 * 1024 + 4096) + (2 * 14336 + 4096)
REST = 2 * 128_256 * 4096 + 65 * 4096
"""Llama-3.1-8B: embedding, head, two norms a layer and the last."""


@pytest.mark.parametrize(("precision", "scheme"), SCHEMES.items())
def test_sizing_and_the_launch_contract_speak_of_the_same_schemes(
    precision: Precision, scheme: QuantizationScheme
) -> None:
    told = WeightsScheme.quantized(precision, Precision.BF16)
    assert (told.name, told.bits, told.group_size) == (scheme.name, scheme.bits, scheme.group)
    assert told.scale_type is not None
    width = Precision(told.scale_type).bytes
    assert scheme.scale_bytes(64, Precision.BF16) == (2 * width if scheme is INT4 else width)


def loading(scheme: QuantizationScheme, *, tensor: int = 1) -> Configuration:
    return replace(on_gpu(tensor=tensor), scheme=scheme)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (INT8, 32 * (LAYER + 2 * ROWS) + 2 * REST),
        (FP8, 32 * (LAYER + 4 * ROWS) + 2 * REST),
        (INT4, 32 * (LAYER // 2 + LAYER // 128 * 4) + 2 * REST),
    ],
    ids=["INT8", "FP8", "INT4"],
)
def test_llama_8b_takes_the_bytes_counted_by_hand(scheme: QuantizationScheme, expected: int) -> None:
    facts = facts_of(LLAMA_8B)
    assert loaded_bytes(facts, Quantized(scheme, Precision.BF16)) == expected
    stage = footprint(facts, loading(scheme), workload()).worst
    assert stage.bytes.weights == expected
    (layers,) = (term for term in stage.terms if term.formula.startswith("32 layers"))
    assert f"{scheme.bits} bit {scheme.name}" in layers.formula
    assert "8192 × 2 B kept in BF16" in layers.formula


def test_a_rank_of_four_holds_its_rows_and_all_rows_of_what_is_cut_by_columns() -> None:
    facts, tensor = facts_of(LLAMA_8B), 4
    rest = 2 * (2 * 128_256 * 4096 // tensor + 65 * 4096)
    cut_by_rows = 4096 + 2 * 1024 + 2 * 14336
    int8 = 32 * (LAYER // tensor + 2 * (cut_by_rows // tensor + 2 * 4096)) + rest
    int4 = 32 * (LAYER // 2 + LAYER // 128 * 4) // tensor + rest
    assert footprint(facts, loading(INT8, tensor=tensor), workload()).worst.bytes.weights == int8
    assert footprint(facts, loading(INT4, tensor=tensor), workload()).worst.bytes.weights == int4


def test_a_cut_through_a_group_of_scales_is_refused_and_per_row_scales_allow_it() -> None:
    facts = facts_of("Qwen/Qwen3-8B", intermediate_size=12_288 + 64)
    words = "INT4 keeps a scale for 128 columns: 12352 columns of the down projection over tensor parallel 2"
    with pytest.raises(ParallelRefused, match=words):
        footprint(facts, loading(INT4, tensor=2), workload())
    assert footprint(facts, loading(INT8, tensor=2), workload()).worst.bytes.weights > 0
    assert footprint(facts, loading(INT4), workload()).worst.bytes.weights > 0


def test_the_last_group_of_a_row_may_be_short() -> None:
    # SmolLM2: 576 columns are four groups and a half.
    assert (INT4.packed_bytes(576), INT4.scale_bytes(576, Precision.BF16)) == (288, 5 * 4)
    facts = facts_of(SMOLLM2)
    by_row = 576 + 2 * 192 + 2 * 1536
    matrices_of_layer = by_row * (288 + 20) + 576 * (288 + 20) + 576 * (768 + 12 * 4)
    rest = 2 * (49_152 * 576 + 61 * 576)
    assert loaded_bytes(facts, Quantized(INT4, Precision.BF16)) == 30 * matrices_of_layer + rest


def test_biases_stay_in_16_bit() -> None:
    facts = facts_of("Qwen/Qwen3-8B", model_type="qwen2", num_key_value_heads=8, head_dim=None)
    biases, norms = 4096 + 2 * 1024, 2 * 4096
    assert layer_parts(facts, facts.layers[0], 1, Quantized(INT8, Precision.BF16)).rest == biases + norms


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_of_every_published_model_what_stays_is_told_by_role(name: str) -> None:
    facts = PUBLISHED[name]
    for layer in facts.layers:
        quantized = {group.role for group in layer.groups if matrices(group, facts, layer)}
        assert quantized <= {Role.ATTENTION_Q, Role.ATTENTION_KV, Role.MLP, Role.EXPERT}
        large = {
            group.role
            for group in layer.groups
            if group.role in (Role.MLP, Role.EXPERT) and group.elements > facts.hidden * facts.hidden
        }
        assert large <= quantized
        assert (Role.ATTENTION_Q in quantized) == bool(layer.key_dim and layer.value_dim)


def test_mixtures_are_three_matrices_an_expert() -> None:
    facts = PUBLISHED["Qwen/Qwen3-30B-A3B"]
    (expert,) = (group for group in facts.layers[0].groups if group.role is Role.EXPERT)
    up, down = matrices(expert, facts, facts.layers[0])
    assert (up.copies, up.rows, up.columns) == (128, 2 * 768, 2048)
    assert (down.copies, down.rows, down.columns) == (128, 2048, 768)


@several
@given(models())
def test_fewer_bits_never_take_more(facts: ModelFacts) -> None:
    int4, int8, fp8 = (loaded_bytes(facts, Quantized(one, Precision.BF16)) for one in (INT4, INT8, FP8))
    assert int4 < int8 < fp8 < loaded_bytes(facts, Precision.BF16)


@several
@given(models(), st.sampled_from([INT4, INT8, FP8]), st.sampled_from([2, 4, 8]))
def test_a_rank_holds_at_least_its_share_and_no_more_than_all(
    facts: ModelFacts, scheme: QuantizationScheme, tensor: int
) -> None:
    whole = loaded_bytes(facts, Quantized(scheme, Precision.BF16))
    try:
        held = footprint(facts, loading(scheme, tensor=tensor), workload()).worst.bytes.weights
    except ParallelRefused:
        return
    assert whole <= held * tensor
    assert held <= whole


def test_an_fp8_cache_halves_keys_and_values_and_leaves_states() -> None:
    facts = facts_of(LLAMA_8B)
    assert kv.bytes_per_token(facts, Precision.FP8) == 65_536
    halved = footprint(facts, replace(on_gpu(), kv_cache=Precision.FP8), workload()).worst
    assert halved.bytes.kv_cache == 65_536 * 8192 * 8
    hybrid = PUBLISHED["Qwen/Qwen3-Next-80B-A3B-Instruct"]
    assert kv.bounded_bytes_per_sequence(hybrid, Precision.FP8) == kv.bounded_bytes_per_sequence(
        hybrid, Precision.BF16
    )


@pytest.mark.parametrize(
    ("scheme", "tokens", "expected"),
    [
        (INT8, 8192, 922_326_964 - 855_218_100),
        (INT4, 8192, 922_326_964 - 855_218_100),
        (INT8, 1023, 0),
        (INT4, 1023, 64 << 20),
        (FP8, 8192, 32 << 20),
    ],
)
def test_a_step_holds_what_rounding_adds_to_it(
    scheme: QuantizationScheme, tokens: int, expected: int
) -> None:
    """The larger figures are the ledger's of an H100, with these weights and with BF16's."""
    facts, asked = facts_of(LLAMA_8B), replace(workload(), max_batched_tokens=tokens, max_sequences=8)
    rounded, plain = (
        footprint(facts, configuration, asked).worst.bytes.activations
        for configuration in (loading(scheme), on_gpu())
    )
    assert rounded - plain == expected
