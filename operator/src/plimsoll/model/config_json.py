"""A config.json, as `transformers` writes it → the blueprint of its model.

Fields that the files leave out are filled in by the family's row, as the configuration classes of
transformers 5 do. A field that is missing without a default is an error: a guess would be a wrong plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plimsoll.model.architectures import family
from plimsoll.model.blueprint import Blueprint
from plimsoll.model.errors import ArchitectureUnsupported
from plimsoll.model.fields import Fields
from plimsoll.model.json_text import parse_object

MAX_CONFIG_BYTES = 1_000_000
_OUTER_FIELDS = (
    "vision_config", "audio_config", "quantization_config", "tie_word_embeddings", "dtype", "torch_dtype",
)  # fmt: skip
"""Fields of a multimodal config.json that stand beside `text_config`."""


def read_fields(raw: bytes, name: str = "config.json") -> Fields:
    """The fields of the text model: those of `text_config` where there is one. Raises FileUnreadable."""
    fields = Fields(parse_object(raw, name), name)
    text = fields.part("text_config")
    if text is None:
        return fields
    outer = {key: fields.values[key] for key in _OUTER_FIELDS if fields.values.get(key) is not None}
    inner = {key: value for key, value in text.values.items() if value is not None}
    architecture = fields.values.get("model_type", text.values.get("model_type"))
    return Fields({**outer, **inner, "model_type": architecture}, name)


def parse_config(raw: bytes, name: str = "config.json") -> Blueprint:
    """The blueprint of a decoder. Raises FileUnreadable, ArchitectureUnsupported or FormatUnsupported."""
    return blueprint_of(read_fields(raw, name))


def blueprint_of(fields: Fields) -> Blueprint:
    """The blueprint by the fields of a config.json, or of GGUF metadata under the same names."""
    made = family(architecture_of(fields), fields.name).blueprint(architecture_of(fields), fields)
    return replace(made, quantization=_quantization(fields))


def architecture_of(fields: Fields) -> str:
    found = fields.values.get("model_type")
    if not isinstance(found, str):
        raise ArchitectureUnsupported(f"{fields.name}: model_type: expected a string, found {found!r:.80}")
    return found


def _quantization(fields: Fields) -> Mapping[str, Any] | None:
    part = fields.part("quantization_config")
    return None if part is None else part.values
