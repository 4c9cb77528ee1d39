"""Rotary embeddings as a config.json states them: `rope_parameters` (transformers 5), or `rope_theta` and
`rope_scaling` (before).

What each type means is transformers' `modeling_rope_utils.py`; which is taken for granted when a field is
missing, its `RotaryEmbeddingConfigMixin` and the families' configuration classes.
"""

from __future__ import annotations

import math

from plimsoll_worker.config import LinearScaling, Llama3Scaling, LongRope, Rope, RopeScaling, YarnScaling
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.loading.fields import Fields
from plimsoll_worker.models.families import Family

LAYER_TYPES = ("full_attention", "sliding_attention")


def ropes(fields: Fields, family: Family, head_dim: int) -> tuple[Rope, Rope]:
    """(of layers that see all, of layers with a window). Raises ModelUnsupported, ModelUnreadable."""
    parameters = fields.part("rope_parameters")
    full, sliding = parameters, parameters.part("sliding_attention")
    if any(kind in parameters.values for kind in LAYER_TYPES):
        full = parameters.part("full_attention")
    everywhere = _rope(fields, full if full.values else fields.part("rope_scaling"), family, head_dim)
    if not family.local_rope:
        return everywhere, everywhere
    if sliding.values.get("rope_type", "default") != "default":
        raise sliding.refuse("rope_type", "this engine stretches layers without a window alone")
    theta = sliding.number("rope_theta", fields.number("rope_local_base_freq"))
    return everywhere, Rope(theta, head_dim)


def _rope(fields: Fields, rope: Fields, family: Family, head_dim: int) -> Rope:
    share = rope.values.get("partial_rotary_factor", fields.values.get("partial_rotary_factor")) or 1.0
    if share != 1.0 and not family.partial_rotary:
        raise ModelUnsupported(
            f"{fields.source}: partial_rotary_factor is {share!r}: this engine rotates whole heads of "
            "this family"
        )
    dim = int(head_dim * share)
    return Rope(
        theta=rope.number("rope_theta", fields.number("rope_theta")),
        dim=dim,
        scaling=_scaling(fields, rope, dim, longrope_under_old_names=family.partial_rotary),
    )


def _scaling(fields: Fields, rope: Fields, dim: int, *, longrope_under_old_names: bool) -> RopeScaling:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if longrope_under_old_names and kind in ("su", "yarn"):
        kind = "longrope"
    longest = fields.integer("max_position_embeddings")
    # phi3 keeps the field beside the object, and it wins there.
    original = fields.optional_integer("original_max_position_embeddings") or rope.integer(
        "original_max_position_embeddings", longest
    )
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(rope.number("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_position=original,
            )
        case "yarn":
            factor = rope.number("factor", longest / original)
            return YarnScaling(
                factor=factor,
                original_max_position=original,
                attention_factor=_yarn_attention_factor(rope, factor),
                beta_fast=rope.number("beta_fast", 32.0),
                beta_slow=rope.number("beta_slow", 1.0),
                truncate=rope.flag("truncate", default=True),
            )
        case "longrope":
            factor = rope.number("factor", longest / original)
            plain = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
            return LongRope(
                short_factors=rope.numbers("short_factor", dim // 2),
                long_factors=rope.numbers("long_factor", dim // 2),
                original_max_position=original,
                attention_factor=rope.number("attention_factor", plain),
            )
        case _:
            raise rope.refuse(
                "rope_type" if "rope_type" in rope.values else "type",
                "this engine has default, linear, llama3, yarn and longrope",
            )


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0

    both = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    plain = magnitude(1.0) if both[0] is None or both[1] is None else magnitude(both[0]) / magnitude(both[1])
    return rope.number("attention_factor", plain)
