"""Predicted time against what vLLM took on the same cards, and what must hold of every prediction."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sizing.shapes import LLAMA_8B, LLAMA_70B, facts_of, on_gpu
from tests.unit.sizing.test_properties import PUBLISHED

from plimsoll.model.facts import ModelFacts
from plimsoll.planning.forward import ForwardPass
from plimsoll.planning.hardware import Hardware, hardware
from plimsoll.planning.latency import (
    Basis,
    Bound,
    Calibration,
    Latency,
    Limit,
    Roofline,
    Targets,
    largest_batch,
    predict,
)
from plimsoll.sizing.configuration import Configuration
from plimsoll.sizing.parallel import ParallelRefused, check_parallel
from plimsoll.sizing.schemes import FP8, INT4, INT8, QuantizationScheme
from plimsoll_worker.launch import Device, Precision

EIGHT_B, QWEN = facts_of(LLAMA_8B), PUBLISHED["Qwen/Qwen3-0.6B"]


def card(product: str, memory_bytes: int = 0) -> Hardware:
    found = hardware(product, memory_bytes)
    assert found is not None, f"{product} is in the table"
    return found


H100, H200, L4 = card("NVIDIA-H100-80GB-HBM3"), card("NVIDIA-H200"), card("NVIDIA-L4")

DECODE = [
    ("H100 8B, 1 sequence", EIGHT_B, H100, 128, 1, 153.1, 3),
    ("H100 8B, 32 sequences", EIGHT_B, H100, 512, 32, 4189, 3),
    ("H100 8B, 128 sequences", EIGHT_B, H100, 512, 128, 11855, 3),
    ("H200 8B, 1 sequence", EIGHT_B, H200, 128, 1, 203.0, 3),
    ("H200 8B, 32 sequences", EIGHT_B, H200, 512, 32, 5444, 3),
    ("H200 8B, 128 sequences", EIGHT_B, H200, 512, 128, 14748, 6),
    ("H200 0.6B, 1 sequence", QWEN, H200, 128, 1, 619, 15),
    ("H200 0.6B, 32 sequences", QWEN, H200, 512, 32, 14721, 15),
    ("H200 0.6B, 128 sequences", QWEN, H200, 512, 128, 30805, 15),
]
"""Tokens a second of all sequences, measured with vLLM 0.22.0 on one card each; the tolerance in percent."""
PREFILL = [
    ("H100 8B", EIGHT_B, H100, 226_000, 5),
    ("H200 8B", EIGHT_B, H200, 214_000, 5),
    ("H200 0.6B", QWEN, H200, 31_000, 15),
]
"""Microseconds for one prompt of 8192 tokens in one chunk, same runs."""


@pytest.mark.parametrize(
    ("facts", "gpu", "context", "sequences", "measured", "tolerance"),
    [case[1:] for case in DECODE],
    ids=[case[0] for case in DECODE],
)
def test_decoding_is_predicted_as_it_was_measured(
    facts: ModelFacts, gpu: Hardware, context: int, sequences: int, measured: float, tolerance: int
) -> None:
    told = predict(facts, on_gpu(), gpu, context_tokens=context, sequences=sequences, batched_tokens=8192)
    assert told.tokens_per_second == pytest.approx(measured, rel=tolerance / 100)
    assert told.basis is Basis.ROOFLINE


@pytest.mark.parametrize(
    ("facts", "gpu", "measured", "tolerance"),
    [case[1:] for case in PREFILL],
    ids=[case[0] for case in PREFILL],
)
def test_prefill_is_predicted_as_it_was_measured(
    facts: ModelFacts, gpu: Hardware, measured: int, tolerance: int
) -> None:
    told = predict(facts, on_gpu(), gpu, context_tokens=8192, sequences=1, batched_tokens=8192)
    assert told.time_to_first_token_microseconds == pytest.approx(measured, rel=tolerance / 100)


def eight_b(
    configuration: Configuration, gpu: Hardware = H100, *, context_tokens: int = 1024, sequences: int = 8
) -> Latency:
    return predict(
        EIGHT_B, configuration, gpu, context_tokens=context_tokens, sequences=sequences, batched_tokens=2048
    )


def quantized(scheme: QuantizationScheme) -> Configuration:
    return Configuration(device=Device.GPU, weights=Precision.BF16, kv_cache=Precision.BF16, scheme=scheme)


def test_a_dense_model_reads_all_its_weights_but_the_embedding() -> None:
    work = ForwardPass(EIGHT_B, on_gpu())
    assert work.weight_bytes(1) == work.weight_bytes(512) == (8_030_261_248 - 128_256 * 4096) * 2
    assert work.cache_bytes(1000) == 1000 * 131_072


def test_a_mixture_reads_the_experts_that_a_batch_chooses() -> None:
    mixture = PUBLISHED["mistralai/Mixtral-8x7B-v0.1"]
    work = ForwardPass(mixture, on_gpu())
    one, all_of_them = work.weight_bytes(1), work.weight_bytes(10_000)
    # 12.9 billion parameters a token of 46.7, less the embedding.
    assert one == pytest.approx(2 * (12.88e9 - 32000 * 4096), rel=0.01)
    assert all_of_them == pytest.approx(2 * (46.7e9 - 32000 * 4096), rel=0.01)
    assert one < work.weight_bytes(2) < work.weight_bytes(4) < all_of_them


def test_a_shared_expert_is_counted_once() -> None:
    deepseek = PUBLISHED["deepseek-ai/DeepSeek-V3 (and R1, V3-0324, R1-0528)"]
    # 37 billion parameters a token, as its authors publish.
    assert ForwardPass(deepseek, on_gpu()).matrix_operations(1, 1) == pytest.approx(2 * 37e9, rel=0.05)


def test_a_window_bounds_what_attention_reads() -> None:
    windowed = PUBLISHED["google/gemma-3-27b-it"]
    work = ForwardPass(windowed, on_gpu())
    grown = work.cache_bytes(32_768) - work.cache_bytes(16_384)
    full = sum(layer.count for layer in windowed.layers if layer.window is None)
    assert grown == 16_384 * full * 2 * 16 * 128 * 2


@pytest.mark.parametrize(
    ("scheme", "faster"), [(INT8, 1.4), (INT4, 1.8), (FP8, 1.4)], ids=["INT8", "INT4", "FP8"]
)
def test_fewer_bits_are_read_faster(scheme: QuantizationScheme, faster: float) -> None:
    plain, narrow = (eight_b(config, sequences=1) for config in (on_gpu(), quantized(scheme)))
    ratio = plain.time_per_output_token_microseconds / narrow.time_per_output_token_microseconds
    assert faster < ratio < 16 / scheme.bits


def test_only_fp8_is_computed_faster_and_only_where_the_gpu_can() -> None:
    def first(configuration: Configuration, gpu: Hardware) -> int:
        return eight_b(configuration, gpu, context_tokens=8192).time_to_first_token_microseconds

    a100 = card("NVIDIA-A100-SXM4-80GB", 80 << 30)
    assert first(quantized(FP8), H100) * 14 < first(on_gpu(), H100) * 10
    assert first(quantized(INT8), H100) >= first(on_gpu(), H100) * 95 // 100
    assert first(quantized(FP8), a100) >= first(on_gpu(), a100) * 95 // 100


def test_tensor_parallel_pays_on_nvlink_and_costs_collectives() -> None:
    one, two, four = (
        eight_b(on_gpu(tensor=tensor), sequences=1).time_per_output_token_microseconds for tensor in (1, 2, 4)
    )
    assert 1.2 < one / two < 1.7, "gpt-fast published 1.61 for a 7B model on two A100"
    assert four < two
    sliced = eight_b(on_gpu(tensor=4), L4, sequences=1)
    assert sliced.time_per_output_token_microseconds > 15_000 * 1000 // 300 // 4, "PCIe is not free"


def test_stages_add_hops_and_save_nothing_for_one_token() -> None:
    one, two = (eight_b(on_gpu(pipeline=pipeline)) for pipeline in (1, 2))
    added = two.time_per_output_token_microseconds - one.time_per_output_token_microseconds
    assert 50 <= added < 100


def test_what_binds_is_told() -> None:
    assert eight_b(on_gpu()).binds is Bound.MEMORY_BANDWIDTH
    assert eight_b(on_gpu(), sequences=2048, context_tokens=16).binds is Bound.COMPUTE
    tiny = predict(QWEN, on_gpu(), H200, context_tokens=16, sequences=1, batched_tokens=256)
    assert tiny.binds is Bound.OVERHEAD


def test_a_calibration_replaces_the_efficiencies() -> None:
    roofline = eight_b(on_gpu())
    told = Roofline(EIGHT_B, on_gpu(), H100, Calibration(decode_permille=1500, prefill_permille=500)).predict(
        context_tokens=1024, sequences=8, batched_tokens=2048
    )
    assert told.basis is Basis.CALIBRATED
    assert told.time_per_output_token_microseconds == pytest.approx(
        roofline.time_per_output_token_microseconds * 1.5, abs=2
    )
    assert told.time_to_first_token_microseconds == pytest.approx(
        roofline.time_to_first_token_microseconds / 2, abs=2
    )


def test_a_calibration_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="decode_permille is 0, expected 1 or more"):
        Calibration(decode_permille=0, prefill_permille=1000)


products = st.sampled_from(["NVIDIA-H100-80GB-HBM3", "NVIDIA-H200", "NVIDIA-L4", "Tesla-T4", "NVIDIA-B200"])
shapes = st.sampled_from(sorted(PUBLISHED))
parallel = st.sampled_from([(1, 1), (2, 1), (8, 1), (1, 2), (4, 4)])


@st.composite
def rooflines(draw: st.DrawFn) -> Roofline:
    facts, (tensor, pipeline) = PUBLISHED[draw(shapes)], draw(parallel)
    try:
        check_parallel(facts, tensor=tensor, pipeline=pipeline)
    except ParallelRefused:
        tensor = pipeline = 1
    return Roofline(facts, on_gpu(tensor=tensor, pipeline=pipeline), card(draw(products)))


@settings(max_examples=150, deadline=None)
@given(rooflines(), st.integers(1, 600), st.integers(1, 100), st.integers(1, 40_000), st.integers(1, 9000))
def test_nothing_gets_faster_with_more_sequences_or_more_context(
    roofline: Roofline, sequences: int, more: int, context: int, longer: int
) -> None:
    def told(count: int, tokens: int) -> Latency:
        return roofline.predict(context_tokens=tokens, sequences=count, batched_tokens=2048)

    here, fuller, deeper = (
        told(sequences, context),
        told(sequences + more, context),
        told(sequences, context + longer),
    )
    for other in (fuller, deeper):
        assert other.time_per_output_token_microseconds >= here.time_per_output_token_microseconds
        assert other.time_to_first_token_microseconds >= here.time_to_first_token_microseconds


@settings(max_examples=80, deadline=None)
@given(
    rooflines(),
    st.none() | st.integers(1_000, 200_000),
    st.none() | st.integers(10_000, 20_000_000),
    st.integers(1, 300),
    st.integers(64, 32_768),
)
def test_the_largest_batch_keeps_its_targets_and_one_more_does_not(
    roofline: Roofline, step: int | None, first: int | None, most: int, context: int
) -> None:
    targets = Targets(time_per_output_token=step, time_to_first_token=first)
    batch = largest_batch(roofline, targets, context_tokens=context, most_sequences=most)
    if batch.sequences:
        assert step is None or batch.latency.time_per_output_token_microseconds <= step
        assert first is None or batch.latency.time_to_first_token_microseconds <= first
    if batch.sequences == most:
        assert batch.binds is Limit.MEMORY
    else:
        refused = largest_batch(roofline, targets, context_tokens=context, most_sequences=batch.sequences + 1)
        assert refused.sequences == batch.sequences
        assert batch.binds is not Limit.MEMORY


def test_the_target_that_binds_is_named() -> None:
    roofline = Roofline(EIGHT_B, on_gpu(), H100)

    def limit(**targets: int) -> tuple[int, int, Limit]:
        batch = largest_batch(roofline, Targets(**targets), context_tokens=2048, most_sequences=64)
        return batch.sequences, batch.batched_tokens, batch.binds

    assert limit() == (64, 2048, Limit.MEMORY)
    sequences, _, binds = limit(time_per_output_token=9_000)
    assert 1 < sequences < 64
    assert binds is Limit.TPOT
    assert limit(time_per_output_token=5_000)[::2] == (0, Limit.TPOT)
    assert limit(time_to_first_token=1_000)[::2] == (0, Limit.TTFT)


def test_the_token_budget_follows_the_targets() -> None:
    """A chunk stays below the time between two tokens; a prompt that must be read at once gets a larger
    one."""
    roofline = Roofline(EIGHT_B, on_gpu(), H100)

    def budget(context: int, **targets: int) -> int:
        return largest_batch(
            roofline, Targets(**targets), context_tokens=context, most_sequences=8
        ).batched_tokens

    assert budget(8192, time_per_output_token=30_000) == 1024
    assert budget(8192, time_per_output_token=60_000) == 2048
    assert budget(32_768, time_to_first_token=1_300_000) > 2048


def test_a_budget_that_is_given_stays() -> None:
    roofline = Roofline(EIGHT_B, on_gpu(), H100)
    batch = largest_batch(
        roofline,
        Targets(time_per_output_token=20_000),
        context_tokens=8192,
        most_sequences=8,
        batched_tokens=4096,
    )
    assert (batch.sequences, batch.batched_tokens) == (8, 4096)


def test_a_larger_model_needs_more_gpus_for_the_same_target() -> None:
    seventy_b = facts_of(LLAMA_70B)
    kept = [
        tensor
        for tensor in (1, 2, 4, 8)
        if largest_batch(
            Roofline(seventy_b, on_gpu(tensor=tensor), H100),
            Targets(time_per_output_token=20_000),
            context_tokens=4096,
            most_sequences=16,
        ).sequences
    ]
    assert kept == [4, 8]


@pytest.mark.parametrize(
    ("product", "memory", "bandwidth"),
    [
        ("NVIDIA-H100-80GB-HBM3", 0, 3350),
        ("NVIDIA-H100-PCIe", 0, 2000),
        ("NVIDIA-H100-NVL", 0, 3900),
        ("nvidia-tesla-a100", 0, 1555),
        ("NVIDIA-A100-SXM4-80GB", 80 << 30, 2039),
        ("a100", 80 << 30, 2039),
        ("NVIDIA-A100-PCIE-40GB", 40 << 30, 1555),
        ("NVIDIA-L40S", 0, 864),
        ("NVIDIA-L4", 0, 300),
        ("Tesla-T4", 0, 320),
    ],
)
def test_a_card_is_found_by_any_of_its_names(product: str, memory: int, bandwidth: int) -> None:
    assert card(product, memory).memory_bandwidth == bandwidth * 10**9


@pytest.mark.parametrize("product", ["", "AMD-Instinct-MI300X", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "H1000"])
def test_what_is_not_in_the_table_has_no_speed(product: str) -> None:
    assert hardware(product) is None


def test_what_a_gpu_has_no_units_for_is_computed_in_fp32() -> None:
    t4 = card("Tesla-T4")
    assert t4.rate(Precision.BF16) == t4.rate(Precision.FP32)
    assert t4.rate(Precision.FP16) > t4.rate(Precision.FP32)
