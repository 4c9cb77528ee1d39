"""A Hugging Face config.json as the shape of a decoder.

Whatever would change the answer and is not implemented is refused here, by the name of its field, before a
byte of weights is read. A default is only taken where transformers' configuration class takes the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll_worker.config import Activation, ExpertsConfig, LayerConfig, ModelConfig
from plimsoll_worker.loading.fields import Fields
from plimsoll_worker.loading.json_file import read_json
from plimsoll_worker.loading.rope_json import ropes
from plimsoll_worker.models.families import Family, supported_family

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def config_from_json(
    values: Mapping[str, Any], *, source: str = "config.json", generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The shape that a config.json states; `generation` is generation_config.json.

    Raises ModelUnsupported and ModelUnreadable, naming the field.
    """
    architecture, family = supported_family(values.get("model_type"), f"{source}: model_type")
    fields = Fields({**family.defaults, **values}, source)
    if values.get("use_bidirectional_attention"):
        raise fields.refuse("use_bidirectional_attention", "this engine has causal attention alone")
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", hidden // heads)
    multipliers = fields if family.multipliers else Fields({}, source)
    biases = family.biases == "attention_bias" and fields.flag("attention_bias", default=False)
    eos = _token_ids(values.get("eos_token_id")) | _token_ids((generation or {}).get("eos_token_id"))
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=_layers(fields, family, head_dim),
        head_count=heads,
        kv_head_count=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_position=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        norm_offset=1.0 if family.gemma else 0.0,
        sandwich_norms=family.gemma,
        qk_norm=family.qk_norm,
        qkv_bias=biases or family.biases == "qkv",
        output_bias=biases,
        mlp_bias=family.mlp_biases and fields.flag("mlp_bias", default=False),
        activation=_activation(fields, "hidden_activation" if family.gemma else "hidden_act"),
        attention_scale=_attention_scale(fields, family, head_dim),
        attention_softcap=fields.optional_number("attn_logit_softcapping") if family.gemma else None,
        logits_softcap=fields.optional_number("final_logit_softcapping") if family.gemma else None,
        logits_scale=1.0 / multipliers.number("logits_scaling", 1.0),
        embedding_scale=hidden**0.5 if family.gemma else multipliers.number("embedding_multiplier", 1.0),
        residual_scale=multipliers.number("residual_multiplier", 1.0),
        experts=_experts(fields, family),
        tied=fields.flag("tie_word_embeddings", default=False),
        eos_token_ids=tuple(sorted(eos)),
    )


def config_from_folder(folder: Path) -> ModelConfig:
    """The shape that the config.json and generation_config.json of a folder state.

    Raises ModelUnsupported and ModelUnreadable, naming file and field.
    """
    generation = folder / "generation_config.json"
    return config_from_json(
        read_json(folder / "config.json"),
        source=str(folder / "config.json"),
        generation=read_json(generation) if generation.exists() else None,
    )


def _layers(fields: Fields, family: Family, head_dim: int) -> tuple[LayerConfig, ...]:
    count = fields.integer("num_hidden_layers")
    everywhere, local = ropes(fields, family, head_dim)
    windows = _windows(fields, family, count)
    return tuple(
        LayerConfig(
            rope=everywhere if window is None else local,
            window=window,
            sparse=_is_sparse(fields, family, layer),
        )
        for layer, window in enumerate(windows)
    )


def _windows(fields: Fields, family: Family, count: int) -> list[int | None]:
    """The window of each layer."""
    switched = family.windows.startswith("switched")
    if family.windows == "none" or (switched and not fields.flag("use_sliding_window", default=False)):
        return [None] * count
    window = fields.optional_integer("sliding_window")
    if family.windows in ("uniform", "switched"):
        return [window] * count
    kinds = fields.values.get("layer_types")
    if kinds is None:
        period = fields.integer("sliding_window_pattern", family.full_attention_period or None)
        first = fields.values.get("max_window_layers", 0)
        slides = [(layer >= first) if switched else bool((layer + 1) % period) for layer in range(count)]
        return [window if slide else None for slide in slides]
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= known.keys():
        raise fields.refuse("layer_types", f"expected one of {', '.join(known)} for each of {count} layers")
    return [known[kind] for kind in kinds]


def _is_sparse(fields: Fields, family: Family, layer: int) -> bool:
    """modeling_qwen3_moe, `Qwen3MoeDecoderLayer`; Mixtral has neither field."""
    if family.experts is None or layer in (fields.values.get("mlp_only_layers") or ()):
        return False
    return (layer + 1) % fields.integer("decoder_sparse_step", 1) == 0


def _experts(fields: Fields, family: Family) -> ExpertsConfig | None:
    if family.experts is None:
        return None
    return ExpertsConfig(
        count=fields.integer("num_local_experts", fields.integer("num_experts", family.experts)),
        per_token=fields.integer("num_experts_per_tok"),
        width=fields.integer("moe_intermediate_size", fields.integer("intermediate_size")),
        normalized=fields.flag("norm_topk_prob", default=False),
    )


def _attention_scale(fields: Fields, family: Family, head_dim: int) -> float:
    if family.gemma:
        return 1.0 / math.sqrt(fields.number("query_pre_attn_scalar"))
    return fields.number("attention_multiplier") if family.multipliers else 1.0 / math.sqrt(head_dim)


def _activation(fields: Fields, name: str) -> Activation:
    found = ACTIVATIONS.get(str(fields.values.get(name)))
    if found is None:
        raise fields.refuse(name, f"this engine has {', '.join(ACTIVATIONS)}")
    return found


def _token_ids(value: object) -> set[int]:
    if isinstance(value, int):
        return {value}
    return {token for token in value if isinstance(token, int)} if isinstance(value, list) else set()
