"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) with the scalings of the families.

Angles are computed once per step from the positions at hand: a table for every position of a 128 k context
would cost 128 MiB for nothing.
"""

from __future__ import annotations

import math

import torch

from plimsoll_worker.config import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    YarnScaling,
)
from plimsoll_worker.kernels import ops


def inverse_frequencies(rope: Rope, context: int) -> torch.Tensor:
    """Radians per position of each pair of elements, (dim / 2) in FP32, for sequences of up to `context`
    tokens."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64, device="cpu").float() / rope.dim
    inverse = 1.0 / (rope.theta**exponents)
    match rope.scaling:
        case LinearScaling(factor=factor):
            return inverse / factor
        case Llama3Scaling() as scaling:
            return _llama3(inverse, scaling)
        case YarnScaling() as scaling:
            return _yarn(inverse, rope, scaling)
        case LongRope() as scaling:
            long = context > scaling.original_max_position
            factors = scaling.long_factors if long else scaling.short_factors
            return inverse / torch.tensor(factors, dtype=torch.float32, device="cpu")
        case FrequencyFactors(factors=factors):
            return inverse / torch.tensor(factors, dtype=torch.float32, device="cpu")
        case None:
            return inverse


def _llama3(inverse: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """transformers, modeling_rope_utils, `_compute_llama3_parameters`: long waves are stretched by
    `factor`, short ones stay, the band between is blended."""
    longest = scaling.original_max_position / scaling.low_freq_factor
    shortest = scaling.original_max_position / scaling.high_freq_factor
    wavelength = 2 * math.pi / inverse
    stretched = torch.where(wavelength > longest, inverse / scaling.factor, inverse)
    blend = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * stretched / scaling.factor + blend * stretched
    between = ~(wavelength < shortest) & ~(wavelength > longest)
    return torch.where(between, blended, stretched)


def _yarn(inverse: torch.Tensor, rope: Rope, scaling: YarnScaling) -> torch.Tensor:
    """transformers, modeling_rope_utils, `_compute_yarn_parameters`."""

    def frequency_turning(rotations: float) -> float:
        """The index of the frequency that turns so often within the original context."""
        turns = scaling.original_max_position / (rotations * 2 * math.pi)
        return rope.dim * math.log(turns) / (2 * math.log(rope.theta))

    first, last = frequency_turning(scaling.beta_fast), frequency_turning(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    if first == last:
        last += 0.001
    index = torch.arange(rope.dim // 2, dtype=torch.float32, device="cpu")
    interpolated = ((index - first) / (last - first)).clamp(0, 1)
    return inverse / scaling.factor * interpolated + inverse * (1 - interpolated)


class Rotary:
    """Turns positions into the cosines and sines of a step."""

    def __init__(self, rope: Rope, context: int, device: torch.device) -> None:
        """`context`: the longest sequence that will be served, tokens. LongRoPE has one set of factors for
        short contexts and one for long ones; the choice is made once, as keys already in the cache could not
        follow a later one (llama.cpp's and vLLM's rule)."""
        self._inverse = inverse_frequencies(rope, context).to(device)
        scaling = rope.scaling
        self._magnitude = scaling.attention_factor if isinstance(scaling, (YarnScaling, LongRope)) else 1.0

    def cos_sin(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions (tokens) → cosines and sines (tokens, 2, dim / 2) in FP32."""
        return ops.rope_angles(positions, self._inverse, scale=self._magnitude)
