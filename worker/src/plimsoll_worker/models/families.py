"""The families of decoders this engine runs: what each sets of `ModelConfig`, one row a family.

Sources: `configuration_<name>.py` (defaults) and `modeling_<name>.py` (biases, norms, masks) of transformers
5.23; llama.cpp's `src/llama-model.cpp` and `convert_hf_to_gguf.py` for GGUF. Free of torch, so that a
configuration can be judged before the weights' library is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.launch import CAPABILITIES

Windows = Literal["none", "uniform", "switched", "switched by layer", "interleaved"]
"""Which layers have a sliding window.

none               no layer
uniform            every layer, when `sliding_window` is a number
switched           the same, when `use_sliding_window` is true as well
switched by layer  the same, from layer `max_window_layers` on, or as `layer_types` says
interleaved        all but every `full_attention_period`-th, or as `layer_types` says
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of decoders."""

    defaults: Mapping[str, Any]
    """What transformers' configuration class takes for fields that config.json lacks."""
    biases: Literal["none", "qkv", "attention_bias"] = "none"
    """Projections of attention with a bias; "attention_bias": all four when that field is true."""
    mlp_biases: bool = False
    """Its MLP has biases when `mlp_bias` is true; the other families have no such field."""
    windows: Windows = "none"
    full_attention_period: int = 0
    qk_norm: bool = False
    gemma: bool = False
    """Norm weights around 0, norms on both sides, embeddings times the root of their width, and
    `query_pre_attn_scalar` in place of the head's width."""
    multipliers: bool = False
    """`embedding_multiplier`, `attention_multiplier`, `residual_multiplier` and `logits_scaling` are
    obeyed."""
    local_rope: bool = False
    """Layers with a window have a rope base of their own."""
    partial_rotary: bool = False
    """`partial_rotary_factor` is obeyed."""
    experts: int | None = None
    """How many a layer has unless config.json says so, as `num_local_experts` (transformers 5) or
    `num_experts`; None: a family without experts."""
    stacked_projections: bool = False
    """Checkpoints hold q, k, v and gate, up as one matrix each."""
    interleaved_pairs: bool = False
    """llama.cpp rotates neighbouring elements, so GGUF holds q and k with permuted rows."""
    gguf: str | None = None
    """`general.architecture`; None: the family's own name."""


_COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10_000.0}
_GEMMA = {
    **_COMMON,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        defaults={**_COMMON, "max_position_embeddings": 2048},
        biases="attention_bias",
        mlp_biases=True,
        interleaved_pairs=True,
    ),
    "mistral": Family(
        # A config.json without `sliding_window` means 4096; null means none.
        defaults={
            **_COMMON,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
        windows="uniform",
        interleaved_pairs=True,
    ),
    "qwen2": Family(
        defaults={
            **_COMMON,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        biases="qkv",
        windows="switched by layer",
    ),
    "qwen3": Family(
        defaults={
            **_COMMON,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        biases="attention_bias",
        windows="switched by layer",
        qk_norm=True,
    ),
    "gemma2": Family(
        defaults={
            **_GEMMA,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        biases="attention_bias",
        windows="interleaved",
        full_attention_period=2,
        gemma=True,
    ),
    "gemma3_text": Family(
        defaults={
            **_GEMMA,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        biases="attention_bias",
        windows="interleaved",
        full_attention_period=6,
        qk_norm=True,
        gemma=True,
        local_rope=True,
        gguf="gemma3",
    ),
    "phi3": Family(
        defaults={**_COMMON, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        windows="uniform",
        partial_rotary=True,
        stacked_projections=True,
    ),
    "granite": Family(
        defaults={**_COMMON, "max_position_embeddings": 2048, "attention_multiplier": 1.0},
        biases="attention_bias",
        mlp_biases=True,
        multipliers=True,
        interleaved_pairs=True,
    ),
    "mixtral": Family(
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        windows="uniform",
        experts=8,
        interleaved_pairs=True,
        gguf="llama",
    ),
    "qwen3_moe": Family(
        defaults={
            **_COMMON,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
        biases="attention_bias",
        windows="switched",
        qk_norm=True,
        experts=128,
        gguf="qwen3moe",
    ),
}


def supported_family(name: object, where: str) -> tuple[str, Family]:
    """The family called `name`. Raises ModelUnsupported naming the field `where` it was found."""
    if name not in CAPABILITIES.architectures:
        known = ", ".join(CAPABILITIES.architectures)
        raise ModelUnsupported(f"{where} is {name!r}: this engine runs {known}")
    return str(name), FAMILIES[str(name)]


def family_of_gguf(name: object, *, experts: bool, where: str) -> tuple[str, Family]:
    """The family that llama.cpp calls `name`. Mixtral calls itself llama there and differs by its experts.
    Raises ModelUnsupported."""
    for ours in CAPABILITIES.architectures:
        family = FAMILIES[ours]
        if (family.gguf or ours) == name and (family.experts is not None) == experts:
            return ours, family
    known = ", ".join(dict.fromkeys(FAMILIES[ours].gguf or ours for ours in CAPABILITIES.architectures))
    which = " with experts" if experts else ""
    raise ModelUnsupported(f"{where} is {name!r}{which}: this engine runs {known}")
