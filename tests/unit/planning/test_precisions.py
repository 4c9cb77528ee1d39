"""What weights and cache are kept in: nothing is lost unasked, and what may be lost is lost only where it
saves something."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.unit.planning.builders import H100, L4, T4, decide_one, gpu_node, llama, node, pod, request
from tests.unit.sizing.test_properties import PUBLISHED

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.model.facts import LayerClass, ModelFacts, PackedMatrices, TensorGroup
from plimsoll.planning.formats import LADDER, formats
from plimsoll.planning.snapshot import Decision, Rejection
from plimsoll_worker.launch import CAPABILITIES, Capabilities, Device, Precision

FULL = Capabilities.model_validate_json(
    (Path(__file__).parents[3] / "samples/capabilities/full.json").read_text(encoding="utf-8")
)
"""An engine that runs everything that can be planned."""
PLAIN = CAPABILITIES.model_copy(
    update={
        "weights": {Device.GPU: (Precision.BF16, Precision.FP16, Precision.FP32)},
        "kv_cache": {},
        "checkpoints": {},
    }
)
"""One that quantizes nothing."""
GIB = 1 << 30


def decided(nodes: list[Any], facts: ModelFacts, engine: Capabilities = FULL, **fields: Any) -> Decision:
    return decide_one(nodes, request(facts=facts, **fields), capabilities=engine)


def planned(nodes: list[Any], facts: ModelFacts, engine: Capabilities = FULL, **fields: Any) -> PlanStatus:
    decision = decided(nodes, facts, engine, **fields)
    assert decision.plan is not None, decision.rejection
    return decision.plan


def refused(nodes: list[Any], facts: ModelFacts, engine: Capabilities = FULL, **fields: Any) -> Rejection:
    decision = decided(nodes, facts, engine, **fields)
    assert decision.plan is None
    assert decision.rejection is not None
    return decision.rejection


def quantized(facts: ModelFacts, method: str = "gptq") -> ModelFacts:
    """The same model with every matrix of its layers in four bits, scales included."""

    def packed(group: TensorGroup) -> TensorGroup:
        small = group.elements <= 2 * facts.hidden
        return (
            group if small else group.model_copy(update={"dtype": "I32", "bytes": group.elements * 17 // 32})
        )

    layers = tuple(
        LayerClass(**{**dict(layer), "groups": tuple(map(packed, layer.groups))}) for layer in facts.layers
    )
    kept = PackedMatrices(precision="INT4", group=128)
    return facts.model_copy(update={"quantization": method, "packed": kept, "layers": layers})


@pytest.mark.parametrize("weights", ["Auto", "Native"])
def test_nothing_is_rounded_unasked(weights: str) -> None:
    plan = planned([gpu_node("l", L4, 8)], llama(8), quantization={"weights": weights})
    assert (plan.weights, plan.compute, plan.kv_cache) == ("BF16", None, "BF16")
    assert plan.tensor_parallel == 2, "two GPUs rather than a rounded model on one"


def test_a_model_that_does_not_fit_is_told_which_precision_would() -> None:
    unstaged = FULL.model_copy(update={"max_pipeline_parallel": 1})
    rejection = refused([gpu_node("gpu-042", L4, 1)], llama(8), unstaged)
    assert rejection.reason == "InsufficientMemory"
    assert rejection.message.endswith("INT8 would fit on 1 GPU of gpu-042: set quantization.floor: INT8")


def test_a_precision_is_told_also_where_more_gpus_would_do() -> None:
    rejection = refused([gpu_node("gpu-042", L4, 1)], llama(8))
    assert rejection.reason == "InsufficientGPUs"
    assert "BF16 TP1xPP2 on NVIDIA-L4 has room for 1 of 2 stages" in rejection.message
    assert rejection.message.endswith("INT8 would fit on 1 GPU of gpu-042: set quantization.floor: INT8")


def test_a_precision_without_a_free_gpu_is_told_as_such() -> None:
    taken = [pod("stranger", "l", gpus=1)]
    decision = decide_one([gpu_node("l", L4, 1)], request(facts=llama(8)), pods=taken, capabilities=FULL)
    assert decision.rejection is not None
    told = "INT8 would fit on 1 NVIDIA-L4, but no node has them free: set quantization.floor: INT8"
    assert decision.rejection.message.endswith(told)


def test_who_named_a_precision_is_told_the_field_that_he_wrote() -> None:
    asked = {"weights": "BF16"}
    message = refused([gpu_node("gpu-042", L4, 1)], llama(8), quantization=asked).message
    assert message.endswith("INT8 would fit on 1 GPU of gpu-042: set quantization.weights: INT8")


def test_what_the_message_proposes_really_fits() -> None:
    plan = planned([gpu_node("gpu-042", L4, 1)], llama(8), quantization={"floor": "INT8"})
    assert (plan.weights, plan.compute, plan.kv_cache) == ("INT8", "BF16", "BF16")
    assert plan.summary == "INT8 TP1xPP1, 1 GPU on 1 node (NVIDIA-L4)"
    native = next(option for option in plan.rejected if option.option == "BF16 TP1 on NVIDIA-L4")
    assert native.reason == "InsufficientMemory"


def test_an_engine_that_does_not_quantize_is_not_offered_a_precision() -> None:
    assert "quantization" not in refused([gpu_node("l", L4, 1)], llama(8), PLAIN).message


@pytest.mark.parametrize("precision", ["FP8", "INT8", "INT4"])
def test_what_the_engine_cannot_run_is_told_with_what_it_can(precision: str) -> None:
    asked = {"weights": precision}
    rejection = refused([gpu_node("h", H100, 1)], llama(8), PLAIN, quantization=asked)
    assert rejection.reason == "EngineUnsupported"
    assert f"{precision} TP1 would fit on 1 {H100}" in rejection.message
    assert "runs BF16 or FP16 or FP32 on GPU: set quantization.weights to that" in rejection.message


def test_an_fp8_cache_needs_an_engine_that_keeps_it() -> None:
    rejection = refused([gpu_node("h", H100, 1)], llama(8), PLAIN, quantization={"kvCache": "FP8"})
    assert rejection.reason == "EngineUnsupported"
    assert "runs no FP8 KV cache on GPU: set quantization.kvCache: Native" in rejection.message


@pytest.mark.parametrize(
    ("product", "asked", "told"),
    [
        (T4, {"weights": "FP8"}, "FP8 needs compute capability 8.9 and the GPU has 7.5"),
        (T4, {"weights": "Native"}, "BF16 needs compute capability 8.0 and the GPU has 7.5"),
        (T4, {"weights": "FP32", "kvCache": "FP8"}, "FP8 needs compute capability 8.9"),
        (T4, {"weights": "INT8"}, "BF16 needs compute capability 8.0"),
    ],
    ids=["FP8 weights", "BF16 weights", "FP8 cache", "INT8 beside BF16"],
)
def test_a_gpu_without_units_for_a_type_is_refused(product: str, asked: dict[str, str], told: str) -> None:
    rejection = refused([gpu_node("t", product, 8)], llama(1, layers=16), quantization=asked)
    assert rejection.reason == "EngineUnsupported"
    assert told in rejection.message


def test_compute_capabilities_are_numbers_not_text() -> None:
    labels = {"nvidia.com/gpu.compute.major": "10", "nvidia.com/gpu.compute.minor": "0"}
    blackwell = gpu_node("b", H100, 1, labels=labels)
    assert planned([blackwell], llama(8), quantization={"weights": "FP8"}).weights == "FP8"


def test_of_equally_many_gpus_the_highest_precision_is_taken() -> None:
    floor = {"floor": "INT4", "kvCache": "Auto"}
    assert planned([gpu_node("h", H100, 8)], llama(8), quantization=floor).weights == "BF16"
    plan = planned([gpu_node("h", H100, 8)], llama(70, layers=80), quantization=floor)
    assert (plan.weights, plan.tensor_parallel) == ("INT4", 1)


@pytest.mark.parametrize(
    ("floor", "weights", "gpus"), [("Native", "BF16", 4), ("INT8", "INT8", 2), ("INT4", "INT4", 1)]
)
def test_never_below_the_floor(floor: str, weights: str, gpus: int) -> None:
    plan = planned([gpu_node("h", H100, 8)], llama(70, layers=80), quantization={"floor": floor})
    assert (plan.weights, plan.tensor_parallel) == (weights, gpus)


def test_the_floor_goes_by_what_rounding_costs() -> None:
    allowed = [one.weights for one in formats(request(quantization={"floor": "FP8"}).spec, llama(8))]
    assert allowed == [Precision.BF16, Precision.INT8, Precision.FP8]
    assert [LADDER.index(higher) < LADDER.index(lower) for higher, lower in pairwise(LADDER)] == [True] * 4


def test_an_fp8_cache_is_half_the_bytes_and_taken_only_where_it_saves_a_gpu() -> None:
    nodes = [gpu_node("l", L4, 2)]
    native = planned(nodes, llama(8))
    halved = planned(nodes, llama(8), quantization={"kvCache": "Auto"})
    assert (native.tensor_parallel, native.kv_cache) == (2, "BF16")
    assert (halved.tensor_parallel, halved.kv_cache, halved.weights) == (1, "FP8", "BF16")
    assert halved.summary == "BF16 TP1xPP1 with FP8 KV cache, 1 GPU on 1 node (NVIDIA-L4)"
    assert halved.memory[0].predicted.kv_cache == native.memory[0].predicted.kv_cache
    roomy = planned([gpu_node("h", H100, 1)], llama(8), quantization={"kvCache": "Auto"})
    assert roomy.kv_cache == "BF16"


class TestQuantizedCheckpoints:
    """They stay as they are stored, or they are refused."""

    def test_one_that_the_engine_loads_is_sized_as_it_is_stored(self) -> None:
        plan = planned([gpu_node("h", H100, 1)], quantized(llama(70, layers=80)))
        assert (plan.checkpoint_format, plan.weights, plan.kv_cache) == ("gptq", "BF16", "BF16")
        assert plan.summary == f"gptq TP1xPP1, 1 GPU on 1 node ({H100})"
        assert plan.memory[0].predicted.weights < 40 * GIB

    @pytest.mark.parametrize("floor", ["INT8", "INT4"])
    def test_a_floor_does_not_convert_it(self, floor: str) -> None:
        plan = planned([gpu_node("h", H100, 1)], quantized(llama(8)), quantization={"floor": floor})
        assert plan.checkpoint_format == "gptq"

    @pytest.mark.parametrize("weights", ["BF16", "INT8", "FP32"])
    def test_it_is_converted_neither_up_nor_down(self, weights: str) -> None:
        asked = {"weights": weights}
        message = refused([gpu_node("h", H100, 8)], quantized(llama(8)), quantization=asked).message
        assert f"spec.quantization.weights is {weights}" in message
        assert "write Native, or name the unquantized one in spec.model" in message

    def test_one_that_the_engine_does_not_load_is_refused_by_its_format(self) -> None:
        rejection = refused([gpu_node("h", H100, 8)], quantized(llama(8)), PLAIN)
        assert rejection.reason == "EngineUnsupported"
        assert "loads no gptq checkpoint: name the unquantized one" in rejection.message

    def test_one_of_a_layout_that_has_no_exact_form_is_refused(self) -> None:
        facts = quantized(llama(8)).model_copy(update={"packed": None})
        rejection = refused([gpu_node("h", H100, 8)], facts)
        assert rejection.reason == "EngineUnsupported"
        assert "has no exact form for the matrices of this gptq checkpoint" in rejection.message

    def test_one_that_does_not_fit_is_not_promised_another_precision(self) -> None:
        assert "quantization" not in refused([gpu_node("t", T4, 1)], quantized(llama(70, layers=80))).message


def test_a_cpu_keeps_what_it_computes_in() -> None:
    asked = {"floor": "INT4"}
    plan = planned([node("c")], llama(1, layers=16), placement={"device": "CPU"}, quantization=asked)
    assert (plan.device, plan.weights) == (Device.CPU, "FP32")
    rounded = planned(
        [node("c")], llama(1, layers=16), placement={"device": "CPU"}, quantization={"weights": "INT8"}
    )
    assert (rounded.weights, rounded.compute) == ("INT8", "FP32")


@pytest.mark.parametrize("asked", [{"weights": "INT8"}, {"weights": "Auto", "floor": "INT4"}], ids=str)
def test_experts_are_not_promised_in_a_precision_that_the_engine_keeps_no_experts_in(
    asked: dict[str, str],
) -> None:
    able = CAPABILITIES.model_copy(update={"quantized_experts": True})
    nodes, sparse = [gpu_node("h", H100, 1)], PUBLISHED["Qwen/Qwen3-30B-A3B"]
    assert planned(nodes, sparse, able, quantization=asked).weights in ("INT8", "BF16")
    unable = CAPABILITIES.model_copy(update={"quantized_experts": False})
    if asked["weights"] == "INT8":
        rejection = refused(nodes, sparse, unable, quantization=asked)
        assert rejection.reason == "EngineUnsupported"
        assert "keeps no experts in INT8: set quantization.weights: BF16" in rejection.message
    else:
        assert planned(nodes, sparse, unable, quantization=asked).weights == "BF16"
