"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) with the scalings of the llama family.

Angles are computed per step from the positions at hand: a table for every position of a 128 k context would
cost 128 MiB for nothing.
"""

from __future__ import annotations

import math

import torch

from plimsoll_worker.config import FrequencyFactors, LinearScaling, Llama3Scaling, RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """Radians per position of each pair of elements, (head_dim / 2) in FP32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    inverse = 1.0 / (theta**exponents)
    match scaling:
        case LinearScaling(factor=factor):
            return inverse / factor
        case Llama3Scaling():
            return _llama3(inverse, scaling)
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


class Rotary:
    """Turns positions into the cosines and sines of a step."""

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling) -> None:
        self._inverse = inverse_frequencies(head_dim, theta, scaling)

    def to_device(self, device: torch.device) -> None:
        self._inverse = self._inverse.to(device)

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (tokens) → cosines and sines, each (tokens, 1, head_dim) in `dtype`, computed in FP32."""
        half = positions.float()[:, None] * self._inverse[None, :]
        angles = torch.cat((half, half), dim=-1)[:, None, :]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of every head of x (tokens, heads, head_dim) against each other."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
