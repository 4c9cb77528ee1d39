"""The values that numbers and scales can stand for: what an error is rounded to while it is handed on.

A grid is chosen once, from the weights as they were and from how large the inputs of their columns are; which
of its values each weight takes is then `error_feedback`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plimsoll_worker.kernels.reference import FP8_MAX
from plimsoll_worker.quant.rounding import FP8_FACTORS, e4m3

KEPT = torch.bfloat16
"""Scales are chosen among its values, so that a worker in BF16 has the same ones as a worker in FP32."""
SYMMETRIC_SHARES = tuple(1 - 0.01 * step for step in range(16))
GROUP_SHARES = tuple(1 - 0.02 * step for step in range(21))
"""Shares of the largest, or of the range, that are tried: what lies outside is clipped, the rest is finer."""


class Grid(Protocol):
    """Of a matrix (outputs, inputs)."""

    def nearest(self, weights: Tensor, columns: Tensor) -> Tensor:
        """Of some columns' weights (outputs, count) the values that are next to them."""
        ...


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """(number - zero) * scale, with numbers of `least` to `most`."""

    scales: Tensor
    """(outputs, groups), FP32; never 0."""
    zeros: Tensor
    """(outputs, groups), whole numbers in FP32."""
    group: int
    least: int
    most: int

    def nearest(self, weights: Tensor, columns: Tensor) -> Tensor:
        groups = columns // self.group
        scales, zeros = self.scales[:, groups], self.zeros[:, groups]
        return ((weights / scales + zeros).round_().clamp_(self.least, self.most) - zeros) * scales

    def numbers(self, values: Tensor) -> Tensor:
        """Of values of this grid (outputs, inputs), int16."""
        groups = torch.arange(values.shape[1], device=values.device) // self.group
        return (values / self.scales[:, groups] + self.zeros[:, groups]).round_().to(torch.int16)


@dataclass(frozen=True, slots=True)
class FloatGrid:
    """e4m3 numbers times the scale of their row."""

    scales: Tensor
    """(outputs, 1), FP32; never 0."""

    def nearest(self, weights: Tensor, columns: Tensor) -> Tensor:
        del columns
        return self.numbers(weights).float() * self.scales

    def numbers(self, values: Tensor) -> Tensor:
        """e4m3, saturated."""
        return e4m3(values, self.scales)


def float_grid(weights: Tensor, importance: Tensor) -> FloatGrid:
    """weights (outputs, inputs), importance (inputs) of their squared errors; FP32."""
    largest = weights.abs().amax(1, keepdim=True) / FP8_MAX
    best = FloatGrid(_kept(largest))
    least = torch.full_like(largest, torch.inf)
    columns = torch.arange(weights.shape[1], device=weights.device)
    for factor in FP8_FACTORS:
        tried = FloatGrid(_kept(largest * factor))
        error = _error(tried.nearest(weights, columns) - weights, importance)
        best = FloatGrid(torch.where(error < least, tried.scales, best.scales))
        least = torch.minimum(error, least)
    return best


def symmetric_grid(weights: Tensor, importance: Tensor, bits: int) -> IntegerGrid:
    """A scale for each row and no zero points; the largest number is as far from 0 as the smallest."""
    most = 2 ** (bits - 1) - 1
    rows = weights[:, None, :]
    reach = rows.abs().amax(-1, keepdim=True)
    tried = ((_kept(share * reach / most), torch.zeros_like(reach)) for share in SYMMETRIC_SHARES)
    return _least_error(rows, importance.expand(1, -1), tried, weights.shape[1], -most, most)


def grouped_grid(weights: Tensor, importance: Tensor, group: int, bits: int) -> IntegerGrid:
    """A scale and a zero point, itself a number, for each `group` columns; the group divides them."""
    most = 2**bits - 1
    groups = weights.reshape(len(weights), -1, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    middle, reach = (low + high) / 2, (high - low) / 2

    def shrunk(share: float) -> tuple[Tensor, Tensor]:
        scales = _kept(2 * share * reach / most)
        return scales, (-(middle - share * reach) / scales).round().clamp(0, most)

    tried = (shrunk(share) for share in GROUP_SHARES)
    return _least_error(groups, importance.view(-1, group), tried, group, 0, most)


def _least_error(
    groups: Tensor,
    importance: Tensor,
    tried: Iterable[tuple[Tensor, Tensor]],
    group: int,
    least: int,
    most: int,
) -> IntegerGrid:
    """Of the scales and zeros (outputs, groups, 1) tried, those whose numbers of `groups` (outputs, groups,
    columns) have the least error."""
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for scales, zeros in tried:
        numbers = (groups / scales + zeros).round_().clamp_(least, most)
        error = _error((numbers - zeros).mul_(scales).sub_(groups), importance)
        if best is None:
            best = scales, zeros, error
            continue
        better = error < best[2]
        best = (
            torch.where(better, scales, best[0]),
            torch.where(better, zeros, best[1]),
            torch.where(better, error, best[2]),
        )
    assert best is not None
    return IntegerGrid(best[0].squeeze(-1), best[1].squeeze(-1), group, least, most)


def _error(difference: Tensor, importance: Tensor) -> Tensor:
    return difference.square().mul(importance).sum(-1, keepdim=True)


def _kept(scales: Tensor) -> Tensor:
    """As BF16 has them, in FP32; 1 in place of 0, which is the scale of zeros."""
    kept = scales.to(KEPT).float()
    return torch.where(kept == 0, 1.0, kept)
