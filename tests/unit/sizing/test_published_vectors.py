"""Single figures that others published or measured, each with its source."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dev.hub.well_known import WELL_KNOWN
from tests.unit.model.published import config_of, rows

from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing.footprint import Configuration, Workload, footprint
from plimsoll_worker.launch import Device, Precision

GIB = 1 << 30
LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
ROWS = rows()
DEEPSEEK = next(name for name in ROWS if name.startswith("deepseek-ai/DeepSeek-V3"))
MINIMAX_M2 = {
    "model_type": "minimax_m2", "hidden_size": 3072, "num_hidden_layers": 62, "num_attention_heads": 48,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 1536, "num_local_experts": 256,
    "num_experts_per_tok": 8, "vocab_size": 200_064, "max_position_embeddings": 196_608,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
    },
}  # fmt: skip


def formed(config: dict[str, Any] | bytes) -> ModelFacts:
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    return assemble_closed_form(parse_config(raw), where="config.json", revision="")


def known(name: str, **changes: Any) -> ModelFacts:
    return formed({**WELL_KNOWN[name], **changes})


def weights_of_a_rank(facts: ModelFacts, tensor: int) -> int:
    configuration = Configuration(
        device=Device.GPU,
        weights=Precision.BF16,
        kv_cache=Precision.BF16,
        tensor_parallel=tensor,
        stored=bool(facts.quantization),
    )
    load = Workload(max_context_tokens=4096, max_sequences=1, max_batched_tokens=2048)
    return footprint(facts, configuration, load).worst.bytes.weights


@pytest.mark.parametrize(("precision", "delta"), [(Precision.FP16, 131_072), (Precision.FP32, 262_144)])
def test_webllm_counts_the_same_bytes_for_one_more_token(precision: Precision, delta: int) -> None:
    # WebLLM's `vram_required_MB` of Llama-3.1-8B at contexts of 1k and 4k: 131,074 B and 262,145 B a token.
    assert kv.bytes_per_token(known(LLAMA_8B), precision) == delta


@pytest.mark.parametrize(("tensor", "gib"), [(1, 14.96), (2, 7.48)])
def test_vllm_measured_the_same_weights(tensor: int, gib: float) -> None:
    # vllm-project/vllm#10511, Llama-3-8B on H100.
    assert round(weights_of_a_rank(known(LLAMA_8B), tensor) / GIB, 2) == gib


def test_hf_mem_sums_the_files_and_the_cache_of_minimax_m2() -> None:
    # alvarobartt/hf-mem, README: tensor bytes, and 196,608 tokens of cache in FP8.
    facts = formed(MINIMAX_M2)
    assert facts.checkpoint_bytes == pytest.approx(230_121_630_720, rel=1e-6)
    assert kv.bytes_per_token(facts, Precision.BF16) // 2 * 196_608 == 24_964_497_408


def test_an_index_of_llama_3_in_fp8_by_tensor_sums_to_the_byte() -> None:
    # llm-d/llm-d-kv-cache, tests/e2e/redis_mock/testdata/local-llama3: metadata.total_size.
    facts = known(LLAMA_8B, quantization_config={"quant_method": "fp8", "activation_scheme": "static"})
    assert facts.checkpoint_bytes == 9_081_202_432


@pytest.mark.parametrize("tensor", [1, 2, 8, 16])
def test_a_latent_is_replicated(tensor: int) -> None:
    # ai-dynamo/aiconfigurator, tests/unit/sdk/test_memory_estimation.py: 61 × 576 × 2, the same at TP 8.
    layers = formed(config_of(ROWS[DEEPSEEK])).layers
    per_token = sum(layer.count * kv.layer_bytes_per_token(layer, Precision.BF16, tensor) for layer in layers)
    assert per_token == 70_272


@pytest.mark.parametrize(("tensor", "expected"), [(1, 327_680), (4, 81_920), (8, 40_960), (16, 40_960)])
def test_kv_heads_are_replicated_when_there_are_more_ranks(tensor: int, expected: int) -> None:
    # The same file: Llama-70B; TP 16 holds one replicated head.
    layer = known("meta-llama/Llama-3.3-70B-Instruct").layers[0]
    assert layer.count * kv.layer_bytes_per_token(layer, Precision.BF16, tensor) == expected


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        ("google/gemma-3-27b-it", 2.91),
        ("openai/gpt-oss-120b", 1.13),
        (DEEPSEEK, 2.14),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 0.82),
        ("ibm-granite/granite-4.0-h-small", 0.57),
    ],
)
def test_one_long_sequence_costs_what_its_layers_keep(model: str, gib: float) -> None:
    # 32,768 tokens in 16 bit, windows bounded; others are wrong here by factors of 2 to 12.
    facts = formed(config_of(ROWS[model]))
    grows = 32_768 * kv.bytes_per_token(facts, Precision.BF16)
    assert round((grows + kv.bounded_bytes_per_sequence(facts, Precision.BF16)) / GIB, 2) == gib
