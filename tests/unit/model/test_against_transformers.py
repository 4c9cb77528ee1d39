"""An independent oracle: the parameters that `transformers` builds from the same hyper-parameters, on the
meta device."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.unit.model.crafted import config
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from plimsoll.model.architectures import FAMILIES
from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, wide heads": {"model_type": "llama", "head_dim": 48, "num_key_value_heads": 4},
    "mistral": {"model_type": "mistral", "head_dim": 24},
    "mistral, default KV heads": {
        "model_type": "mistral",
        "num_attention_heads": 8,
        "num_key_value_heads": None,
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 with biases": {
        "model_type": "qwen3",
        "attention_bias": True,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    "gemma2": {"model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": None},
    "granite": {"model_type": "granite", "attention_bias": True},
    "olmo2": {"model_type": "olmo2"},
    "cohere2": {"model_type": "cohere2", "tie_word_embeddings": None},
    "starcoder2": {"model_type": "starcoder2", "use_bias": True},
    "starcoder2 without biases": {"model_type": "starcoder2", "use_bias": False},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True},
    "stablelm in parallel": {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True},
    "glm4": {"model_type": "glm4", "head_dim": 16, "pad_token_id": 0},
    "falcon in the new layout": {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "bias": True,
    },
}


def _oracle(raw: bytes) -> torch.nn.Module:
    values = json.loads(raw)
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    build = AutoModelForImageTextToText if "vision_config" in values else AutoModelForCausalLM
    with torch.device("meta"):
        return build.from_config(made)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_closed_form_names_and_shapes_are_those_of_transformers(changes: dict[str, object]) -> None:
    raw = config(**changes)
    expected = {name: tuple(parameter.shape) for name, parameter in _oracle(raw).named_parameters()}
    ours = {tensor.name: tensor.shape for tensor in closed_form(parse_config(raw), "config.json")}
    assert ours == expected


_WIDE = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
_LATENT = {
    **_WIDE, "num_key_value_heads": 8, "n_routed_experts": 4, "moe_intermediate_size": 32, "q_lora_rank": 24,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 2,
    "head_dim": None,
}  # fmt: skip
_DELTA = {
    **_WIDE, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
}  # fmt: skip
_MOE = {"num_experts": 4, "moe_intermediate_size": 32}
_SHARED = {**_MOE, "shared_expert_intermediate_size": 48}
_GEMMA = {**_WIDE, "tie_word_embeddings": None}
_TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 8, "image_size": 32,
}  # fmt: skip
_QWEN_TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "out_hidden_size": 64,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [],
}  # fmt: skip
# Families whose experts transformers fuses after loading, or whose names it changes: the sums are compared.
SUMS: dict[str, dict[str, Any]] = {
    "phi3, tied": {
        "model_type": "phi3", "tie_word_embeddings": True, "num_key_value_heads": 4, "pad_token_id": 0,
    },
    "gemma2, odd layers": {"model_type": "gemma2", **_GEMMA, "num_hidden_layers": 5, "attention_bias": True},
    "gemma3_text": {"model_type": "gemma3_text", **_GEMMA, "num_hidden_layers": 7},
    "gemma3_text, untied": {"model_type": "gemma3_text", **_WIDE, "head_dim": 32},
    "mixtral": {"model_type": "mixtral"},
    "mixtral of 3": {"model_type": "mixtral", "num_local_experts": 3, "head_dim": 24},
    "qwen2_moe": {"model_type": "qwen2_moe", **_SHARED, **_WIDE, "head_dim": None},
    "qwen2_moe, every second": {
        "model_type": "qwen2_moe", **_SHARED, "num_hidden_layers": 3, "decoder_sparse_step": 2,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **_MOE, **_WIDE},
    "qwen3_moe, some dense": {"model_type": "qwen3_moe", **_MOE, "head_dim": 8, "mlp_only_layers": [1]},
    "gpt_oss": {"model_type": "gpt_oss", **_WIDE, "num_local_experts": 4},
    "gpt_oss of 6": {"model_type": "gpt_oss", "num_local_experts": 6, "head_dim": 32},
    "deepseek_v2": {"model_type": "deepseek_v2", **_LATENT},
    "deepseek_v2 lite": {
        "model_type": "deepseek_v2", **_LATENT, "q_lora_rank": None, "first_k_dense_replace": 0,
    },
    "deepseek_v3": {"model_type": "deepseek_v3", **_LATENT, "rope_interleave": True},
    "deepseek_v3, one shared": {
        "model_type": "deepseek_v3", **_LATENT, "n_shared_experts": 1, "v_head_dim": 24,
    },
    "deepseek_v32": {"model_type": "deepseek_v32", **_LATENT, "index_n_heads": 4, "index_head_dim": 16},
    "glm_moe_dsa": {
        "model_type": "glm_moe_dsa", **_LATENT, "indexer_types": ["full", "shared", "full", "full"],
    },
    "glm4, untied": {"model_type": "glm4", **_WIDE, "attention_bias": False, "pad_token_id": 0},
    "glm4_moe": {"model_type": "glm4_moe", **_WIDE, **_LATENT, "head_dim": 16},
    "glm4_moe with norms": {
        "model_type": "glm4_moe", **_LATENT, **_WIDE, "use_qk_norm": True, "attention_bias": True,
    },
    "granite, tied": {"model_type": "granite", "tie_word_embeddings": True, "mlp_bias": True},
    "falcon, one KV head": {"model_type": "falcon", "tie_word_embeddings": True},
    "falcon in turn": {"model_type": "falcon", "parallel_attn": False, "bias": True, "multi_query": False},
    "olmo2, all heads": {"model_type": "olmo2", "num_key_value_heads": 4, "attention_bias": True},
    "cohere2, biased": {"model_type": "cohere2", **_GEMMA, "head_dim": None, "attention_bias": True},
    "minimax_m2": {"model_type": "minimax_m2", **_WIDE, "num_local_experts": 4},
    "minimax_m2 of 6": {"model_type": "minimax_m2", "head_dim": 32, "num_local_experts": 6},
    "qwen3_next": {"model_type": "qwen3_next", **_DELTA, **_SHARED},
    "qwen3_next, some dense": {"model_type": "qwen3_next", **_DELTA, **_SHARED, "mlp_only_layers": [0, 3]},
    "qwen3_5": {"model_type": "qwen3_5_text", **_DELTA},
    "qwen3_5 of 8": {
        "model_type": "qwen3_5_text", **_DELTA, "num_hidden_layers": 8, "tie_word_embeddings": True,
    },
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", **_DELTA, **_SHARED},
    "granitemoehybrid": {
        "model_type": "granitemoehybrid", "num_local_experts": 4, "shared_intermediate_size": 48,
        "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 8,
        "mamba_d_state": 16, "mamba_d_head": 16,
    },
    "granitemoehybrid without experts": {
        "model_type": "granitemoehybrid", "num_local_experts": 0, "shared_intermediate_size": 48,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_state": 8, "mamba_n_groups": 2,
    },
    "jamba": {
        "model_type": "jamba", "num_hidden_layers": 4, "num_experts": 4, "attn_layer_period": 2,
        "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "jamba by default": {
        "model_type": "jamba", "num_hidden_layers": 8, "num_experts": 2, "use_mamba_kernels": False,
    },
    "nemotron_h": {
        "model_type": "nemotron_h", **_WIDE, "hybrid_override_pattern": "M*-E", "mamba_num_heads": 8,
        "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "n_routed_experts": 4,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48,
    },
    "nemotron_h, dense": {
        "model_type": "nemotron_h", **_WIDE, "hybrid_override_pattern": "M-M*", "mamba_num_heads": 4,
        "mamba_head_dim": 32, "ssm_state_size": 8, "n_groups": 1,
    },
    "gemma4": {
        "model_type": "gemma4_text", **_GEMMA, "num_hidden_layers": 6, "global_head_dim": 32,
        "num_global_key_value_heads": 2, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    },
    "gemma4 with shared keys": {
        "model_type": "gemma4_text", **_GEMMA, "num_hidden_layers": 6, "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 96, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    },
    "gemma4 with experts": {
        "model_type": "gemma4_text", **_GEMMA, "hidden_size_per_layer_input": 0, "enable_moe_block": True,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    },
    "gemma3 with its tower": {
        "model_type": "gemma3", "vision_config": {
            **_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False,
        },
        "mm_tokens_per_image": 4, "text_config": json.loads(config(model_type="gemma3_text", **_GEMMA)),
    },
    "qwen3_5 with its tower": {
        "model_type": "qwen3_5", "vision_config": _QWEN_TOWER,
        "text_config": json.loads(config(model_type="qwen3_5_text", **_DELTA)),
    },
    "gemma4 with its tower": {
        "model_type": "gemma4",
        "text_config": json.loads(config(model_type="gemma4_text", **_GEMMA, hidden_size_per_layer_input=0)),
        "vision_config": {
            **_TOWER, "model_type": "gemma4_vision", "head_dim": 16, "num_key_value_heads": 2,
            "position_embedding_size": 64,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", SUMS.values(), ids=SUMS)
def test_parameters_are_those_of_transformers(changes: dict[str, object]) -> None:
    raw = config(**changes)
    if "text_config" in changes:
        raw = json.dumps({**changes, "dtype": "bfloat16"}).encode()
    facts = assemble_closed_form(parse_config(raw), where="config.json", revision="")
    assert facts.parameters == sum(parameter.numel() for parameter in _oracle(raw).parameters())


def test_every_family_is_held_against_transformers() -> None:
    held = {str(case["model_type"]) for case in (*SHAPES.values(), *SUMS.values())}
    # The same rows under other names: kimi_k2 has no class of its own, the others wrap a text model.
    twins = {"kimi_k2", "kimi_k25", "RefinedWeb", "RefinedWebModel", "qwen2_vl", "qwen3_5_moe"}
    assert held | twins == FAMILIES.keys()
