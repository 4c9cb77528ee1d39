"""The rows of `tests/data/model_facts.csv` as config.json files: hyper-parameters from its columns, and what
has no column written down here."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[2] / "data" / "model_facts.csv"
Row = Mapping[str, str]

_COLUMNS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "q_heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate",
    "vocab_size": "vocab",
    "max_position_embeddings": "max_position",
    "sliding_window": "sliding_window",
    "moe_intermediate_size": "moe_intermediate",
    "num_experts_per_tok": "experts_per_token",
    "first_k_dense_replace": "first_dense_layers",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope",
    "qk_rope_head_dim": "qk_rope",
    "v_head_dim": "v_head_dim",
    "n_shared_experts": "shared_experts",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Every family has its own word for the number of experts; each reads its own."""
_SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "patch_size": 14, "image_size": 896,
}  # fmt: skip
_FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_DELTA_NET = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
}  # fmt: skip
_GRANITE = {
    "layer_types": ["attention" if index in (5, 15, 25, 35) else "mamba" for index in range(40)],
    "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_expand": 2,
}  # fmt: skip
_INDEXER_TYPES = ["full" if index < 3 or (index + 2) % 4 == 0 else "shared" for index in range(78)]
_FALCON_180B = {"new_decoder_architecture": True, "num_kv_heads": 8, "ffn_hidden_size": 59392}
_KIMI_PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True, "type": "int",
            },
        }
    },
    "ignore": [
        "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    ],
}  # fmt: skip

# By a part of the model's name.
EXTRAS: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-": {"sliding_window": None},
    "google/gemma-3-": {"vision_config": _SIGLIP},
    "openai/gpt-oss-120b": {"quantization_config": {"quant_method": "mxfp4"}},
    "deepseek-ai/DeepSeek-V3": {"num_nextn_predict_layers": 1, "quantization_config": _FP8_BLOCKS},
    "zai-org/GLM-4.5-Air": {"num_nextn_predict_layers": 1, "attention_bias": True},
    "Qwen/Qwen3-Next": {
        **_DELTA_NET, "linear_num_value_heads": 32, "shared_expert_intermediate_size": 512,
    },
    "AI21-Jamba-Mini": {"mamba_dt_rank": 256},
    "Nemotron-3-Nano": {
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8,
        "moe_shared_expert_intermediate_size": 3712, "mamba_ssm_cache_dtype": "float32",
    },
    "granite-4.0-h-tiny": {
        **_GRANITE, "mamba_n_heads": 48, "intermediate_size": 512, "shared_intermediate_size": 1024,
    },
    "granite-4.0-h-small": {
        **_GRANITE, "mamba_n_heads": 128, "intermediate_size": 768, "shared_intermediate_size": 1536,
    },
    "tiiuae/falcon-180B": _FALCON_180B,
    "Qwen/Qwen3.5-122B": {
        **_DELTA_NET, "linear_num_value_heads": 64, "shared_expert_intermediate_size": 1024,
        "mtp_num_hidden_layers": 1,
        "vision_config": {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "num_position_embeddings": 2304, "out_hidden_size": 3072, "patch_size": 16,
        },
    },
    "moonshotai/Kimi-K2.5": {
        "quantization_config": _KIMI_PACKED,
        "vision_config": {
            "vt_hidden_size": 1152, "vt_intermediate_size": 4304, "vt_num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "zai-org/GLM-5.2-FP8": {
        "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "first_k_dense_replace": 3,
        "index_n_heads": 32, "index_head_dim": 128, "num_nextn_predict_layers": 1,
        "indexer_types": _INDEXER_TYPES, "quantization_config": _FP8_BLOCKS,
    },
    "google/gemma-4-31B": {
        "global_head_dim": 512, "num_global_key_value_heads": 4, "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16, "head_dim": 72, "patch_size": 16, "position_embedding_size": 10240,
        },
    },
    "Qwen2.5-72B-Instruct-GPTQ": {
        "torch_dtype": "float16",
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    },
    "Llama-3.3-70B-Instruct-bnb-4bit": {
        "quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
    },
    "Qwen/Qwen2-VL-7B": {
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584,
            "patch_size": 14,
        },
    },
}  # fmt: skip


def rows() -> dict[str, Row]:
    """The table by model."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def config_of(row: Row, **changes: Any) -> bytes:
    """The config.json of a row."""
    values: dict[str, Any] = {key: int(row[column]) for key, column in _COLUMNS.items() if row[column]}
    latent = row["attention"].startswith("MLA")
    if latent:
        values.pop("head_dim")
    values["model_type"] = row["family"]
    values["tie_word_embeddings"] = row["tie_embeddings"] == "True"
    values["torch_dtype"] = "bfloat16"
    if row["experts"]:
        values |= dict.fromkeys(_EXPERTS, int(row["experts"]))
    for part, extra in EXTRAS.items():
        if part in row["model"]:
            values |= extra
    return json.dumps({**values, **changes}).encode()
