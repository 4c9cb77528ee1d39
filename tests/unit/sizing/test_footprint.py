"""The footprint: exact where a closed form exists, and the sum of the terms it shows."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import pytest
from tests.unit.sizing.shapes import LLAMA_8B, LLAMA_70B, SMOLLM2, facts_of, on_gpu, workload
from tests.unit.sizing.test_properties import PUBLISHED

from plimsoll.sizing.activations import layer_peak
from plimsoll.sizing.footprint import Configuration, footprint
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll.sizing.runtime import CPU, GPU, MIB
from plimsoll_worker.launch import Device, MemoryCategory, Precision


def test_one_gpu_holds_the_whole_model_exactly() -> None:
    stage = footprint(facts_of(LLAMA_8B), on_gpu(), workload()).worst
    assert stage.layers == (0, 32)
    assert stage.bytes.weights == 16_060_522_496
    assert stage.bytes.kv_cache == 131_072 * 8192 * 8
    assert stage.bytes.runtime == GPU.context + GPU.libraries
    assert stage.bytes.communication == 0


def test_the_terms_add_up_to_the_categories_and_the_total() -> None:
    for stage in footprint(facts_of(LLAMA_70B), on_gpu(tensor=4, pipeline=2), workload()).stages:
        wire = stage.bytes.model_dump(by_alias=True)
        for category in MemoryCategory:
            terms = sum(term.bytes for term in stage.terms if term.category is category)
            assert terms == wire.get(category.value, 0)
        assert stage.total == sum(wire.values())


def test_a_prefill_of_8192_tokens_is_the_published_peak() -> None:
    # T·[2·2h + 3·inter·2] for Llama-3.1-8B at T = 8192: 0.78 GiB.
    stage = footprint(facts_of(LLAMA_8B), on_gpu(), workload(batched=8192, sequences=1)).worst
    layer = next(term for term in stage.terms if term.formula.startswith("layer:"))
    assert layer.bytes == 8192 * 2 * (2 * 4096 + 3 * 14336)
    assert round(layer.bytes / 2**30, 2) == 0.78


def test_a_cpu_worker_pays_for_its_process_and_no_context() -> None:
    configuration = Configuration(device=Device.CPU, weights=Precision.FP32, kv_cache=Precision.FP32)
    stage = footprint(facts_of(SMOLLM2), configuration, workload()).worst
    assert stage.bytes.weights == 134_515_008 * 4
    assert stage.bytes.runtime == CPU.context + CPU.libraries
    # Measured on a worker of this model with this workload: 128 to 131 MiB.
    assert 115 * MIB < stage.bytes.activations < 131 * MIB
    assert stage.bytes.activations + stage.bytes.fragmentation > 131 * MIB


def test_constants_can_be_replaced_by_measured_ones() -> None:
    measured = replace(GPU, context=1, libraries=2)
    assert footprint(facts_of(), on_gpu(), workload(), measured).worst.bytes.runtime == 3


def test_tensor_parallel_divides_matrices_and_keeps_norms_whole() -> None:
    facts = facts_of(LLAMA_8B)
    norms = (2 * 32 + 1) * 4096
    for tensor in (2, 4, 8):
        stage = footprint(facts, on_gpu(tensor=tensor), workload()).worst
        assert stage.bytes.weights == 2 * ((facts.parameters - norms) // tensor + norms)
        assert stage.bytes.kv_cache == 131_072 * 8192 * 8 // tensor


def test_a_sliding_window_saves_only_where_the_engine_drops_what_left_it() -> None:
    facts = facts_of("mistralai/Mistral-7B-Instruct-v0.3", sliding_window=4096)
    kept = footprint(facts, on_gpu(), workload(context=32_768)).worst.bytes.kv_cache
    bounded = footprint(facts, replace(on_gpu(), bounded_windows=True), workload(context=32_768)).worst
    assert kept == 131_072 * 32_768 * 8
    assert bounded.bytes.kv_cache == 131_072 * (8 * (4096 + 16) + 2048)


def test_kv_heads_are_replicated_when_there_are_more_ranks() -> None:
    facts = facts_of(LLAMA_8B)
    eight, sixteen = (footprint(facts, on_gpu(tensor=tensor), workload()).worst for tensor in (8, 16))
    assert sixteen.bytes.kv_cache == eight.bytes.kv_cache


@pytest.mark.parametrize(
    ("name", "tensor", "pipeline", "words"),
    [
        (SMOLLM2, 2, 1, "9 attention heads do not divide by tensor parallel 2"),
        ("01-ai/Yi-34B", 3, 1, "56 attention heads do not divide by tensor parallel 3"),
        (SMOLLM2, 9, 1, "intermediate width 1536 does not divide by tensor parallel 9"),
        (LLAMA_8B, 1, 33, "33 pipeline stages for 32 layers"),
    ],
    ids=["heads", "odd", "intermediate", "stages"],
)
def test_an_impossible_cut_is_refused_with_its_numbers(
    name: str, tensor: int, pipeline: int, words: str
) -> None:
    with pytest.raises(ParallelRefused) as caught:
        footprint(facts_of(name), on_gpu(tensor=tensor, pipeline=pipeline), workload())
    assert words in str(caught.value)


def test_kv_heads_that_neither_divide_nor_are_divided_are_refused() -> None:
    facts = facts_of(
        LLAMA_8B, num_attention_heads=36, num_key_value_heads=6, head_dim=128, intermediate_size=14400
    )
    with pytest.raises(ParallelRefused, match="6 KV heads neither divide by tensor parallel 4"):
        footprint(facts, on_gpu(tensor=4), workload())
    assert footprint(facts, on_gpu(tensor=12), workload()).worst.bytes.kv_cache > 0


def test_stages_are_contiguous_and_hold_every_weight_once() -> None:
    facts = facts_of(LLAMA_70B)
    stages = footprint(facts, on_gpu(pipeline=3), workload()).stages
    assert [stage.layers[0] for stage in stages] + [80] == [0] + [stage.layers[1] for stage in stages]
    assert sum(stage.bytes.weights for stage in stages) == facts.checkpoint_bytes


def test_the_stage_with_the_head_gets_fewer_layers() -> None:
    facts = facts_of(LLAMA_8B, vocab_size=1_000_000)
    stages = footprint(facts, on_gpu(pipeline=4), workload()).stages
    counts = [last - first for first, last in (stage.layers for stage in stages)]
    assert min(counts[1:3]) > max(counts[0], counts[3])


def test_a_tied_head_is_a_second_copy_where_the_stages_are_two() -> None:
    facts = facts_of(SMOLLM2)
    embedding = 49152 * 576 * 2
    one = footprint(facts, on_gpu(), workload()).stages
    two = footprint(facts, on_gpu(pipeline=2), workload()).stages
    assert sum(stage.bytes.weights for stage in two) == one[0].bytes.weights + embedding


def test_a_thousand_configurations_of_405b_are_sized_in_time() -> None:
    facts = facts_of("meta-llama/Llama-3.1-405B-Instruct")
    start = perf_counter()
    for number in range(1000):
        footprint(facts, on_gpu(tensor=8), workload(context=1024 + number))
    # 300 ms on an idle machine; four times that where others work beside.
    assert perf_counter() - start < 1.2


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(
    ("name", "passed", "hidden", "width"),
    [("Qwen/Qwen3-30B-A3B", 8, 2048, 768), ("mistralai/Mixtral-8x7B-v0.1", 2, 4096, 14336)],
)
def test_a_row_is_there_once_for_each_expert_that_it_passes(
    name: str, passed: int, hidden: int, width: int, tensor: int
) -> None:
    size, told = layer_peak(
        PUBLISHED[name], tokens=8192, context=8192, precision=Precision.BF16, tensor=tensor, device=Device.GPU
    )
    experts = passed * (hidden + 3 * width // tensor)
    assert size == 8192 * 2 * (2 * hidden + experts)
    assert f"{experts} MLP" in told
