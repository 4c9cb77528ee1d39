"""A worker that would run something else than was planned does not turn ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.worker.processes import SMOLLM2_KV_BYTES_PER_TOKEN, smollm2_launch
from tests.unit.worker.test_models import saved

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import EffectiveConfigMismatch, MemoryEstimateExceeded, WorkerError
from plimsoll_worker.launch import CAPABILITIES, Device, LayerRange, Precision, WeightsScheme
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.config_json import config_from_json
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.memory import CudaMemory
from plimsoll_worker.quant.agreement import check_weights
from plimsoll_worker.selfcheck import check_effective, check_plan

SMOLLM2 = config_from_json(
    {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
)
CPU = "Some CPU @ 2.00GHz"

MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"layers": LayerRange(first=0, last=16)}, "layers of the launch is 0-16, expected 0-30"),
    "precision": ({"weights": WeightsScheme.plain(Precision.BF16)}, "weights.name of the launch is BF16"),
    "an engine without it": (
        {"weights": WeightsScheme.plain(Precision.FP16)},
        "weights.name of the launch is FP16, expected one of FP32, INT8, FP8, INT4",
    ),
    "INT8 without what is computed in": (
        {"weights": WeightsScheme(name=Precision.INT8, bits=8)},
        "weights.compute of the launch is None, expected FP32, FP16 or BF16 beside INT8",
    ),
    "INT8 beside what a CPU does not compute in": (
        {"weights": WeightsScheme.quantized(Precision.INT8, Precision.BF16)},
        "weights.compute of the launch is BF16, expected one of FP32",
    ),
    "groups of another size": (
        {
            "weights": WeightsScheme.quantized(Precision.INT4, Precision.FP32).model_copy(
                update={"group_size": 64}
            )
        },
        "weights.groupSize of the launch is 64, expected 128 for INT4",
    ),
    "scales of another type": (
        {
            "weights": WeightsScheme.quantized(Precision.FP8, Precision.FP32).model_copy(
                update={"scale_type": "BF16"}
            )
        },
        "weights.scaleType of the launch is BF16, expected FP32 for FP8",
    ),
    "a quantized checkpoint that is none": (
        {"weights": WeightsScheme.stored("gptq", Precision.FP32)},
        "weights.checkpoint of the launch is gptq, expected none, the format",
    ),
    "bits": ({"weights": WeightsScheme(name=Precision.FP32, bits=8)}, "weights.bits of the launch is 8"),
    "groups": (
        {"weights": WeightsScheme(name=Precision.FP32, bits=32, group_size=128)},
        "weights.groupSize of the launch is 128",
    ),
    "kv precision": ({"kv_cache": Precision.FP16}, "kvCache of the launch is FP16"),
    "tensor parallel": ({"tensor_parallel": 9}, "tensorParallel of the launch is 9, expected at most 8"),
    "pipeline parallel": ({"pipeline_parallel": 17}, "pipelineParallel of the launch is 17"),
    "stage": ({"stage": 1}, "stage of the launch is 1"),
    "product": ({"expected_product": "NVIDIA-H100-80GB-HBM3"}, "expectedProduct of the launch is NVIDIA"),
    "context": (
        {"max_context_tokens": 10000},
        "maxContextTokens of the launch is 10000, expected at most 8192",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_difference_is_told_by_its_field(changes: dict[str, Any], message: str) -> None:
    launch = smollm2_launch(Path("m.gguf"), **changes)
    with pytest.raises(EffectiveConfigMismatch, match=message):
        check_plan(launch, SMOLLM2, CPU)


def test_a_checkpoint_in_another_format_than_planned_is_told() -> None:
    planned = WeightsScheme.stored("gptq", Precision.FP32)
    for weights, found, expected in (
        (WeightsScheme.plain(Precision.FP32), "awq", "is none, expected awq"),
        (planned, "awq", "is gptq, expected awq"),
        (planned, "", "is gptq, expected none"),
    ):
        launch = smollm2_launch(Path("m"), weights=weights)
        with pytest.raises(EffectiveConfigMismatch, match=rf"weights\.checkpoint of the launch {expected}"):
            check_plan(launch, SMOLLM2, CPU, checkpoint=found)


@pytest.mark.parametrize(
    ("weights", "card", "told"),
    [
        (WeightsScheme.quantized(Precision.FP8, Precision.BF16), (8, 0), "weights.name of the launch is FP8"),
        (
            WeightsScheme.quantized(Precision.INT8, Precision.BF16),
            (7, 5),
            "weights.compute of the launch is BF16",
        ),
        (WeightsScheme.plain(Precision.BF16), (7, 5), "weights.name of the launch is BF16"),
        (WeightsScheme.quantized(Precision.INT4, Precision.FP16), (7, 5), None),
        (WeightsScheme.quantized(Precision.FP8, Precision.BF16), (8, 9), None),
    ],
    ids=str,
)
def test_a_card_without_units_for_a_type_is_told_before_weights_are_loaded(
    weights: WeightsScheme, card: tuple[int, int], told: str | None
) -> None:
    launch = smollm2_launch(Path("m"), device=Device.GPU, weights=weights)
    if told is None:
        check_weights(launch, checkpoint="", experts=False, capability=card)
        return
    with pytest.raises(
        EffectiveConfigMismatch, match=f"{told}, expected another: it needs compute capability"
    ):
        check_weights(launch, checkpoint="", experts=False, capability=card)


@pytest.mark.parametrize(
    "weights",
    [
        WeightsScheme.quantized(Precision.INT8, Precision.FP32),
        WeightsScheme.stored("gptq", Precision.FP32),
    ],
    ids=["on load", "stored"],
)
def test_experts_in_fewer_bits_are_told(weights: WeightsScheme) -> None:
    launch = smollm2_launch(Path("m"), weights=weights)
    with pytest.raises(EffectiveConfigMismatch, match="experts are kept in no other"):
        check_weights(
            launch,
            checkpoint=weights.checkpoint or "",
            experts=True,
            capability=None,
            capabilities=CAPABILITIES.model_copy(update={"quantized_experts": False}),
        )


def test_matrices_in_another_precision_than_planned_are_told(tmp_path: Path) -> None:
    saved("Llama", {"hidden_size": 96, "intermediate_size": 64}, tmp_path)
    model = load_model(
        open_checkpoint(tmp_path),
        device=torch.device("cpu"),
        precision=Precision.FP32,
        matrices=Precision.INT8,
    )
    cache = pool(model.config, torch.float32)
    planned = WeightsScheme.quantized(Precision.INT8, Precision.FP32)
    check_effective(smollm2_launch(tmp_path, weights=planned), model, cache)
    for other in (
        WeightsScheme.plain(Precision.FP32),
        WeightsScheme.quantized(Precision.INT4, Precision.FP32),
    ):
        message = f"precision of .*: found INT8, planned {other.name}"
        with pytest.raises(EffectiveConfigMismatch, match=message):
            check_effective(smollm2_launch(tmp_path, weights=other), model, cache)


def test_a_pool_that_holds_no_whole_sequence_is_told_its_bytes() -> None:
    launch = smollm2_launch(Path("m.gguf"), kv_cache_bytes=511 * SMOLLM2_KV_BYTES_PER_TOKEN)
    with pytest.raises(MemoryEstimateExceeded, match=f"512 needs {512 * SMOLLM2_KV_BYTES_PER_TOKEN} bytes"):
        check_plan(launch, SMOLLM2, CPU)


@pytest.mark.parametrize("planned", [None, CPU, CPU.replace(" ", "-").upper()])
def test_a_plan_that_holds_passes_also_when_the_product_is_spelled_as_a_label(planned: str | None) -> None:
    check_plan(smollm2_launch(Path("m.gguf"), expected_product=planned), SMOLLM2, CPU)


def test_what_lies_on_the_device_is_looked_at(tmp_path: Path) -> None:
    saved("Llama", {}, tmp_path)
    model = load_model(open_checkpoint(tmp_path), device=torch.device("cpu"), precision=Precision.FP32)
    launch = smollm2_launch(tmp_path)
    check_effective(launch, model, pool(model.config, torch.float32))
    with pytest.raises(EffectiveConfigMismatch, match="element type of the KV pool"):
        check_effective(launch, model, pool(model.config, torch.float16))
    with pytest.raises(
        EffectiveConfigMismatch, match=r"device of embed_tokens\.weight: found cpu, planned cuda"
    ):
        check_effective(
            launch.model_copy(update={"device": Device.GPU}), model, pool(model.config, torch.float32)
        )
    model.layers["1"].mlp.down_proj.half()
    with pytest.raises(EffectiveConfigMismatch, match=r"element type of layers\.1\.mlp\.down_proj\.weight"):
        check_effective(launch, model, pool(model.config, torch.float32))


def pool(config: ModelConfig, dtype: torch.dtype) -> KVCache:
    return KVCache(config, blocks=2, block_size=4, dtype=dtype, device=torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_a_mismatch_not_a_crash() -> None:
    with pytest.raises(WorkerError, match="is the GPU's resource requested"):
        CudaMemory(index=64)
