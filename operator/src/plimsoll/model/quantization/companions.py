"""Which matrix a stored tensor belongs to, by its name: quantizers store scales, zero points and permutations
beside the packed numbers.

Also the names that a model has inside a larger one: a text model under `language_model.` is the same model.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WRAPPED = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head", "lm_head"),
    ("model.vision_tower.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.embed_vision.", "embed_vision."),
    ("model.audio_tower.", "audio_tower."),
    ("model.embed_audio.", "embed_audio."),
)
PACKED = (".qweight", ".weight_packed", "_blocks")
"""Ends of names under which packed numbers stand; `.weight` itself is the other place."""
SCALES = (
    ".qzeros", ".scales", ".g_idx", ".SCB", ".weight_format",
    ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
    ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4",
    ".weight_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_global_scale", ".weight_zero_point",
    ".weight_shape", ".weight_g_idx", ".input_scale", ".input_scale_ub", ".input_global_scale",
    ".input_zero_point", ".activation_scale", ".k_scale", ".v_scale", ".q_scale", ".output_scale",
    "_scales", "_scale_inv", ".pre_quant_scale",
)  # fmt: skip
"""Ends of names of everything that is stored besides."""
_EXPERT = re.compile(r"\.experts\.(\d{1,6})\.")


class Place(NamedTuple):
    """What a stored name says."""

    module: str
    """The matrix, without `.weight`; or the whole name of a tensor that is none."""
    packed: bool
    scale: bool
    expert: str
    """The number of the expert; empty where there is none."""


def canonical(name: str) -> str:
    """The name inside the text model."""
    for wrapped, plain in _WRAPPED:
        if name.startswith(wrapped):
            return plain + name[len(wrapped) :]
    return name


def place(name: str) -> Place:
    """Where a tensor of this (canonical) name belongs; experts become `{e}`."""
    found = _EXPERT.search(name)
    expert = found.group(1) if found else ""
    if found:
        name = f"{name[: found.start()]}.experts.{{e}}.{name[found.end() :]}"
    for end in SCALES:
        if name.endswith(end):
            return Place(name.removesuffix(end), packed=False, scale=True, expert=expert)
    for end in PACKED:
        if name.endswith(end):
            return Place(name.removesuffix(end), packed=True, scale=False, expert=expert)
    return Place(name, packed=False, scale=False, expert=expert)
