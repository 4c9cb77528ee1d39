"""Hyper-parameters from a config.json, as `transformers` writes it.

Defaults that the files leave out are those of the configuration classes of transformers 5 (LlamaConfig,
MistralConfig, Qwen2Config, Qwen3Config). A field that is missing without a default is an error: a guess would
be a wrong plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plimsoll.model.architectures import DecoderFamily, family
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable, FormatUnsupported
from plimsoll.model.hyper_parameters import HyperParameters
from plimsoll.model.json_text import parse_object

MAX_CONFIG_BYTES = 1_000_000
MAX_WIDTH = 2**31
MAX_LAYERS = 1000

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def parse_config(raw: bytes, name: str = "config.json") -> HyperParameters:
    """Hyper-parameters of a decoder. Raises FileUnreadable, ArchitectureUnsupported or FormatUnsupported."""
    fields = _Fields(parse_object(raw, name), name)
    known = family(fields.architecture(), name)
    quantization = fields.values.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise FormatUnsupported(
            f"{name}: quantization_config.quant_method {method!r} is not read;"
            " name the unquantized checkpoint (F32, F16 or BF16)"
        )
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    layers = fields.size("num_hidden_layers", most=MAX_LAYERS)
    kv_heads = fields.size("num_key_value_heads", default=known.default_kv_heads or heads)
    if heads % kv_heads:
        raise FileUnreadable(
            f"{name}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    head_dim = fields.size("head_dim", default=known.default_head_dim or max(1, hidden // heads))
    return HyperParameters(
        architecture=known.name,
        hidden=hidden,
        intermediate=fields.size("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        vocab=fields.size("vocab_size"),
        max_position=fields.size("max_position_embeddings"),
        tied=fields.flag("tie_word_embeddings", default=False),
        windows=_windows(fields, layers, known),
        dtype=fields.dtype(),
        attention_bias=fields.flag("attention_bias", default=False),
        mlp_bias=fields.flag("mlp_bias", default=False),
    )


def _windows(fields: _Fields, layers: int, known: DecoderFamily) -> tuple[int | None, ...]:
    """The sliding window of each layer.

    Mistral: `sliding_window` holds for all layers, and is 4096 where the file is silent. Qwen: only when
    `use_sliding_window` is on, and then from layer `max_window_layers` upwards. `layer_types` names each
    layer.
    """
    values = fields.values
    if "sliding_window" not in values and known.default_window is not None:
        return (known.default_window,) * layers
    always = known.default_window is not None
    if values.get("sliding_window") is None or not (
        always or fields.flag("use_sliding_window", default=False)
    ):
        return (None,) * layers
    window = fields.size("sliding_window")
    types = values.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            raise FileUnreadable(f"{fields.name}: layer_types: expected {layers} entries")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = 0 if always else fields.size("max_window_layers", default=28, least=0)
    return tuple(window if index >= first else None for index in range(layers))


class _Fields:
    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values = values
        self.name = name

    def architecture(self) -> str:
        found = self.values.get("model_type")
        if not isinstance(found, str):
            raise ArchitectureUnsupported(f"{self.name}: model_type: expected a string, found {found!r:.80}")
        return found

    def size(self, key: str, *, default: int | None = None, least: int = 1, most: int = MAX_WIDTH) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            found = "nothing" if value is None else repr(value)[:80]
            raise FileUnreadable(
                f"{self.name}: {key}: expected a whole number from {least} to {most}, found {found}"
            )
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise FileUnreadable(f"{self.name}: {key}: expected true or false, found {value!r:.80}")
        return value

    def dtype(self) -> str | None:
        # transformers 5 writes `dtype`, earlier ones `torch_dtype`.
        value = self.values.get("dtype") or self.values.get("torch_dtype")
        return _DTYPES.get(value) if isinstance(value, str) else None
