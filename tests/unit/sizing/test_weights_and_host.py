"""Native precision, loaded bytes, the line, and what a container asks of its node."""

from __future__ import annotations

import pytest
from dev.hub.smollm2 import smollm2_gguf
from tests.unit.model import crafted
from tests.unit.model.crafted import F16, F32, Q4_1, MemorySource
from tests.unit.sizing.shapes import LLAMA_8B, SMOLLM2, facts_of, on_gpu, workload

from plimsoll.model.facts import ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.sizing.footprint import Configuration, Footprint, footprint
from plimsoll.sizing.host import cpu_request, ephemeral_storage, host_memory
from plimsoll.sizing.runtime import GIB, MIB, line
from plimsoll.sizing.weights import loaded_bytes, native_precision
from plimsoll.sources import open_source
from plimsoll_worker.launch import Device, Precision


def gguf(*kinds: int) -> ModelFacts:
    return read_facts(MemorySource({"m.gguf": crafted.llama_gguf([[kind] * 7 for kind in kinds])}))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (facts_of(torch_dtype="bfloat16"), Precision.BF16),
        (facts_of(torch_dtype="float16"), Precision.FP16),
        (facts_of(torch_dtype="float32"), Precision.FP32),
        (gguf(Q4_1), Precision.FP32),
        (gguf(F16, F32), Precision.FP32),
    ],
    ids=["BF16", "F16", "F32", "quantized", "mixed"],
)
def test_the_native_precision_holds_every_stored_value(facts: ModelFacts, expected: Precision) -> None:
    assert native_precision(facts) is expected
    assert native_precision(facts, Device.CPU) is Precision.FP32


def test_vectors_that_converters_widen_do_not_count() -> None:
    facts = facts_of("Qwen/Qwen3-8B", model_type="qwen2", num_hidden_layers=1)
    layer = facts.layers[0]
    # As in a GGUF: norms and biases are F32, matrices what the file is.
    biased = layer.model_copy(
        update={
            "groups": (
                *(group.model_copy(update={"dtype": "F16"}) for group in layer.groups),
                layer.groups[0].model_copy(update={"dtype": "F32", "elements": 4096}),
            )
        }
    )
    outer = tuple(group.model_copy(update={"dtype": "F16"}) for group in facts.outer)
    widened = facts.model_copy(update={"layers": (biased,), "outer": outer})
    assert native_precision(widened) is Precision.FP16


def test_loaded_bytes_count_distinct_elements_at_the_precision() -> None:
    facts = facts_of(SMOLLM2)
    assert loaded_bytes(facts, Precision.BF16) == 269_030_016
    assert loaded_bytes(facts, Precision.FP32) == 2 * 269_030_016


def test_a_quantized_gguf_is_widened() -> None:
    facts = read_facts(open_source(str(smollm2_gguf())))
    assert facts.checkpoint_bytes == 96_576_768
    assert loaded_bytes(facts, Precision.FP32) == 134_515_008 * 4


@pytest.mark.parametrize(
    ("total", "headroom", "expected"),
    [(100, 3, 97), (85_520_809_984, 3, 82_955_185_684), (99, 1, 98), (10, 0, 10)],
)
def test_the_line_is_floored(total: int, headroom: int, expected: int) -> None:
    assert line(total, headroom) == expected


def on_cpu(facts: ModelFacts) -> Footprint:
    configuration = Configuration(device=Device.CPU, weights=Precision.FP32, kv_cache=Precision.FP32)
    return footprint(facts, configuration, workload())


def test_the_line_of_a_cpu_worker_holds_its_footprint_and_the_loading() -> None:
    facts = facts_of(SMOLLM2)
    sized = on_cpu(facts)
    for headroom in (0, 3, 20):
        limit = host_memory(facts, sized, headroom_percent=headroom)
        assert line(limit, headroom) >= sized.worst.total + 2 * 49152 * 576 * 4
        assert line(limit - 2, headroom) < sized.worst.total + 2 * 49152 * 576 * 4


def test_a_gpu_worker_asks_for_a_process_per_rank_and_the_tensors_in_flight() -> None:
    facts = facts_of(LLAMA_8B)
    one, two = (host_memory(facts, footprint(facts, on_gpu(tensor=tensor), workload())) for tensor in (1, 2))
    assert two - one == 4 * GIB
    assert 4 * GIB < one < 8 * GIB


def test_files_are_counted_where_they_are_fetched() -> None:
    facts = facts_of(LLAMA_8B)
    assert ephemeral_storage(facts, fetches=False) == GIB
    fetched = ephemeral_storage(facts, fetches=True)
    assert facts.checkpoint_bytes + GIB < fetched < facts.checkpoint_bytes * 102 // 100 + GIB + 64 * MIB


def test_cpu_requests_follow_the_ranks() -> None:
    facts = facts_of(LLAMA_8B)
    assert cpu_request(on_cpu(facts)) == 500
    assert cpu_request(footprint(facts, on_gpu(tensor=4), workload())) == 4500
