"""GGUF metadata as the shape of a decoder, as llama.cpp's loader reads it (`src/llama-model.cpp`,
`load_hparams`).

Some facts about a family are in llama.cpp's code rather than in the file: they stand in `models/families.py`
or here. Whatever would change the answer and is not implemented is refused by the name of its key.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from plimsoll_worker.config import (
    ExpertsConfig,
    FrequencyFactors,
    LayerConfig,
    LinearScaling,
    LongRope,
    ModelConfig,
    Rope,
    RopeScaling,
    YarnScaling,
)
from plimsoll_worker.errors import ModelUnreadable
from plimsoll_worker.loading.fields import Fields
from plimsoll_worker.models.families import Family, family_of_gguf

GEMMA_27B_LAYERS = (46, 62)
"""Gemma 2 and 3 of 27B: the only ones whose scores are scaled by the width of a head as hidden / heads."""

ROPE_TYPES = ("none", "linear", "yarn", "longrope")
"""longrope: known by its tensors of factors."""


def config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rope_factors: Mapping[str, tuple[float, ...]],
    source: str,
) -> ModelConfig:
    """The shape that GGUF metadata states.

    shapes: the tensors' shapes by name, outer dimension first. rope_factors: the contents of
    `rope_freqs.weight`, `rope_factors_short.weight` and `rope_factors_long.weight`, as far as there are any.

    Raises ModelUnsupported and ModelUnreadable, naming the key.
    """
    written = metadata.get("general.architecture")
    expert_count = metadata.get(f"{written}.expert_count") or 0
    architecture, family = family_of_gguf(
        written, experts=expert_count > 0, where=f"{source}: general.architecture"
    )
    prefix = f"{written}."
    fields = Fields(
        {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)},
        source,
        prefix,
    )
    for per_layer in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(fields.values.get(per_layer), list):
            raise fields.refuse(per_layer, "this engine wants the same width in every layer")
    hidden = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.refuse("attention.value_length", "this engine wants keys and values alike")
    if "token_embd.weight" not in shapes:
        raise ModelUnreadable(f"{source}: tensor token_embd.weight is missing")
    head_width = head_dim
    if family.gemma and fields.integer("block_count") in GEMMA_27B_LAYERS:
        head_width = hidden // heads
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        layers=_layers(fields, family, head_dim, rope_factors),
        head_count=heads,
        kv_head_count=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=shapes["token_embd.weight"][0],
        max_position=fields.integer("context_length"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        norm_offset=1.0 if family.gemma else 0.0,
        sandwich_norms=family.gemma,
        qk_norm=family.qk_norm,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_up.bias" in shapes,
        activation="gelu_tanh" if family.gemma else "silu",
        attention_scale=fields.number("attention.scale", head_width**-0.5),
        attention_softcap=fields.optional_number("attn_logit_softcapping"),
        logits_softcap=fields.optional_number("final_logit_softcapping"),
        logits_scale=1.0 / fields.number("logit_scale", 1.0),
        embedding_scale=hidden**0.5 if family.gemma else fields.number("embedding_scale", 1.0),
        residual_scale=fields.number("residual_scale", 1.0),
        experts=_experts(fields, family, expert_count),
        tied="output.weight" not in shapes,
        eos_token_ids=_eos(metadata),
    )


def _layers(
    fields: Fields, family: Family, head_dim: int, rope_factors: Mapping[str, tuple[float, ...]]
) -> tuple[LayerConfig, ...]:
    dim = fields.integer("rope.dimension_count", head_dim)
    if dim != head_dim and not family.partial_rotary:
        raise fields.refuse("rope.dimension_count", "this engine rotates whole heads of this family")
    theta = fields.number("rope.freq_base", family.defaults["rope_theta"])
    everywhere = Rope(theta, dim, _scaling(fields, rope_factors))
    local = everywhere
    if family.local_rope:
        local = Rope(fields.number("rope.freq_base_swa", family.defaults["rope_local_base_freq"]), dim)
    window = fields.values.get("attention.sliding_window")
    window = window if isinstance(window, int) and window > 0 else None
    period = family.full_attention_period
    return tuple(
        LayerConfig(rope=everywhere, window=None, sparse=family.experts is not None)
        if window is None or (period and (layer + 1) % period == 0)
        else LayerConfig(rope=local, window=window, sparse=family.experts is not None)
        for layer in range(fields.integer("block_count"))
    )


def _experts(fields: Fields, family: Family, count: int) -> ExpertsConfig | None:
    """llama.cpp normalises the chosen experts of every family it shares with this engine."""
    if family.experts is None:
        return None
    return ExpertsConfig(
        count=count,
        per_token=fields.integer("expert_used_count"),
        width=fields.integer("expert_feed_forward_length", fields.integer("feed_forward_length")),
        normalized=True,
    )


def _eos(metadata: Mapping[str, Any], keys: Collection[str] = ("eos", "eot")) -> tuple[int, ...]:
    found = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys)
    return tuple(sorted({token for token in found if isinstance(token, int)}))


def _scaling(fields: Fields, factors: Mapping[str, tuple[float, ...]]) -> RopeScaling:
    """Without a type the scaling is linear, without a factor there is none."""
    kind = fields.values.get("rope.scaling.type", "linear")
    if kind not in ROPE_TYPES:
        raise fields.refuse("rope.scaling.type", f"this engine has {', '.join(ROPE_TYPES)}")
    longest = fields.integer("context_length")
    original = fields.integer("rope.scaling.original_context_length", longest)
    attention_factor = fields.number("rope.scaling.attn_factor", 1.0)
    if "rope_factors_long.weight" in factors and "rope_factors_short.weight" in factors:
        return LongRope(
            short_factors=factors["rope_factors_short.weight"],
            long_factors=factors["rope_factors_long.weight"],
            original_max_position=original,
            attention_factor=attention_factor,
        )
    if "rope_freqs.weight" in factors:
        return FrequencyFactors(factors["rope_freqs.weight"])
    # `rope.scale_linear` is what llama.cpp wrote before it had `rope.scaling.factor`.
    factor = fields.values.get("rope.scaling.factor") or fields.values.get("rope.scale_linear")
    if kind == "none" or not factor:
        return None
    if kind == "yarn":
        # ggml, rope_yarn: the magnitude follows from the factor, the file's own multiplies it.
        return YarnScaling(
            factor=float(factor),
            original_max_position=original,
            attention_factor=attention_factor * (0.1 * math.log(factor) + 1.0),
        )
    return LinearScaling(float(factor))
