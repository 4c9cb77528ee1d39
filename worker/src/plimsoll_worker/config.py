"""A model's hyper-parameters, as its files state them: one type for config.json and for GGUF metadata.

Whatever would change the answer and is not implemented is refused here, by the name of its field, before a
byte of weights is read. A default is only taken where the reference implementation (transformers' LlamaConfig
and MistralConfig, llama.cpp's loader) takes the same one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.launch import CAPABILITIES, Precision

MISTRAL_DEFAULT_WINDOW = 4096
"""transformers' MistralConfig: a config.json without the field means this window, `null` means none."""


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor` (kaiokendev, https://kaiokendev.github.io/til)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretch of the low frequencies (transformers, modeling_rope_utils,
    `_compute_llama3_parameters`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class FrequencyFactors:
    """A divisor for each rotary frequency, head_dim / 2 of them: what GGUF keeps as the tensor
    `rope_freqs.weight`."""

    factors: tuple[float, ...]


RopeScaling = LinearScaling | Llama3Scaling | FrequencyFactors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder. Counts and widths are in elements."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_dim: int
    vocab_size: int
    max_position: int
    """Longest sequence the model was made for, tokens."""
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tied: bool
    """The head is the embedding."""
    sliding_window: int | None
    """Tokens that a query sees at most, itself included; None: all."""
    eos_token_ids: tuple[int, ...]

    def kv_bytes_per_token(self, precision: Precision) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layer_count * self.kv_head_count * self.head_dim * precision.bytes


class Fields:
    """Typed look-ups in a model's metadata that fail by naming the file and the field."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelUnreadable(
                f"{self.source}: {name} is {value!r}, expected a whole number of at least 1"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ModelUnreadable(f"{self.source}: {name} is {value!r}, expected a number above 0")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelUnreadable(f"{self.source}: {name} is {value!r}, expected true or false")
        return value

    def refuse(self, name: str, why: str) -> ModelUnsupported:
        return ModelUnsupported(f"{self.source}: {name} is {self.values.get(name)!r}: {why}")


def supported_architecture(name: object, source: str) -> str:
    """`name` when the engine has it. Raises ModelUnsupported."""
    if name not in CAPABILITIES.architectures:
        known = ", ".join(CAPABILITIES.architectures)
        raise ModelUnsupported(f"{source} is {name!r}: this engine runs {known}")
    return str(name)


def config_from_json(
    values: Mapping[str, Any], *, source: str = "config.json", generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The shape that a Hugging Face config.json states; `generation` is generation_config.json.

    Raises ModelUnsupported and ModelUnreadable, naming the field.
    """
    architecture = supported_architecture(values.get("model_type"), f"{source}: model_type")
    fields = Fields(values, source)
    if values.get("quantization_config"):
        raise fields.refuse(
            "quantization_config", "this engine reads unquantized checkpoints; use the original model"
        )
    if values.get("hidden_act", "silu") != "silu":
        raise fields.refuse("hidden_act", "this engine has silu alone")
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    bias = fields.flag("attention_bias", default=False)
    theta, scaling = _rope_from_json(fields)
    eos = _token_ids(values.get("eos_token_id")) | _token_ids((generation or {}).get("eos_token_id"))
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layer_count=fields.integer("num_hidden_layers"),
        head_count=heads,
        kv_head_count=fields.integer("num_key_value_heads", 8 if architecture == "mistral" else heads),
        head_dim=fields.integer("head_dim", hidden // heads),
        vocab_size=fields.integer("vocab_size"),
        max_position=fields.integer("max_position_embeddings", 131072 if architecture == "mistral" else 2048),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", default=False),
        tied=fields.flag("tie_word_embeddings", default=False),
        sliding_window=_window_from_json(fields, architecture),
        eos_token_ids=tuple(sorted(eos)),
    )


def _window_from_json(fields: Fields, architecture: str) -> int | None:
    if architecture != "mistral":
        return None
    if "sliding_window" not in fields.values:
        return MISTRAL_DEFAULT_WINDOW
    return None if fields.values["sliding_window"] is None else fields.integer("sliding_window")


def _rope_from_json(fields: Fields) -> tuple[float, RopeScaling]:
    """theta and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`
    (before)."""
    name = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    raw = fields.values.get(name) or {}
    if not isinstance(raw, Mapping):
        raise ModelUnreadable(f"{fields.source}: {name} is {raw!r}, expected an object")
    rope = Fields(raw, f"{fields.source}: {name}")
    if raw.get("partial_rotary_factor", fields.values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelUnsupported(
            f"{fields.source}: partial_rotary_factor: this engine rotates whole heads alone"
        )
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(rope.number("factor"))
    if kind == "llama3":
        return theta, Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_position=rope.integer("original_max_position_embeddings"),
        )
    raise ModelUnsupported(
        f"{fields.source}: {name}.rope_type is {kind!r}: this engine has default, linear and llama3"
    )


def _token_ids(value: object) -> set[int]:
    if isinstance(value, int):
        return {value}
    return {token for token in value if isinstance(token, int)} if isinstance(value, list) else set()


def config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rope_factors: tuple[float, ...] | None,
    source: str,
) -> ModelConfig:
    """The shape that GGUF metadata states; `shapes` are the tensors' shapes by name, outer dimension first.

    Raises ModelUnsupported and ModelUnreadable, naming the key.
    """
    architecture = supported_architecture(
        metadata.get("general.architecture"), f"{source}: general.architecture"
    )
    fields = Fields(metadata, source)
    if metadata.get(f"{architecture}.expert_count"):
        raise fields.refuse(f"{architecture}.expert_count", "this engine has no mixture of experts")
    for per_layer in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(metadata.get(f"{architecture}.{per_layer}"), list):
            raise fields.refuse(
                f"{architecture}.{per_layer}", "this engine wants the same width in every layer"
            )
    hidden = fields.integer(f"{architecture}.embedding_length")
    heads = fields.integer(f"{architecture}.attention.head_count")
    head_dim = fields.integer(f"{architecture}.attention.key_length", hidden // heads)
    if fields.integer(f"{architecture}.attention.value_length", head_dim) != head_dim:
        raise fields.refuse(
            f"{architecture}.attention.value_length", "this engine wants keys and values alike"
        )
    if fields.integer(f"{architecture}.rope.dimension_count", head_dim) != head_dim:
        raise fields.refuse(f"{architecture}.rope.dimension_count", "this engine rotates whole heads alone")
    if "token_embd.weight" not in shapes:
        raise ModelUnreadable(f"{source}: tensor token_embd.weight is missing")
    window = metadata.get(f"{architecture}.attention.sliding_window")
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.integer(f"{architecture}.feed_forward_length"),
        layer_count=fields.integer(f"{architecture}.block_count"),
        head_count=heads,
        kv_head_count=fields.integer(f"{architecture}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=shapes["token_embd.weight"][0],
        max_position=fields.integer(f"{architecture}.context_length"),
        norm_eps=fields.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        rope_theta=fields.number(f"{architecture}.rope.freq_base", 10000.0),
        rope_scaling=_rope_from_gguf(fields, architecture, rope_factors),
        qkv_bias="blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_up.bias" in shapes,
        tied="output.weight" not in shapes,
        sliding_window=window if isinstance(window, int) and window > 0 else None,
        eos_token_ids=_eos_from_gguf(metadata),
    )


def _eos_from_gguf(metadata: Mapping[str, Any], keys: Collection[str] = ("eos", "eot")) -> tuple[int, ...]:
    found = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys)
    return tuple(sorted({token for token in found if isinstance(token, int)}))


def _rope_from_gguf(fields: Fields, architecture: str, factors: tuple[float, ...] | None) -> RopeScaling:
    """As llama.cpp's loader reads it: without a type the scaling is linear, without a factor there is
    none."""
    kind = fields.values.get(f"{architecture}.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise fields.refuse(
            f"{architecture}.rope.scaling.type", "this engine has none, linear and rope_freqs.weight"
        )
    if factors is not None:
        return FrequencyFactors(factors)
    # `rope.scale_linear` is what llama.cpp wrote before it had `rope.scaling.factor`.
    factor = fields.values.get(f"{architecture}.rope.scaling.factor") or fields.values.get(
        f"{architecture}.rope.scale_linear"
    )
    return LinearScaling(float(factor)) if kind == "linear" and factor else None
