"""Weights rounded to numbers and scales, row by row, in FP32.

Scales are rounded to the type they are kept in before anything is divided by them, so that numbers and scales
that belong together are what is stored. All is elementwise or along rows: a block of rows gives what the
whole matrix would, and the scratch is a few times the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plimsoll_worker.kernels.matrix import QuantizedMatrix, pack_int4, rows_of
from plimsoll_worker.kernels.reference import FP8_MAX
from plimsoll_worker.launch import Precision

ELEMENTS_AT_ONCE = 2**21
"""Of a block of rows: 8 MiB in FP32, and INT4 holds six such blocks while it searches."""
INT8_MAX, INT4_MAX = 127, 15
SHRINKS: tuple[float, ...] = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Shares of a group's range that INT4 tries to keep: what lies outside is clipped, the rest gets finer."""

FP8_FACTORS: tuple[float, ...] = tuple(2 ** (step / 8) for step in range(8))
"""How much larger than needed FP8 tries to make a row's scale. e4m3's steps double with every power of two:
where those fall among a row's weights changes their squared error, 11 % less in SmolLM2-135M, and a scale
twice as large is the same again."""
FP8_LOOKED_AT = 1024
"""Columns of a row, evenly spread, that the choice is made by."""


def round_into(target: QuantizedMatrix, weights: Tensor) -> None:
    """Fill `target` with `weights` (outputs, inputs), of any floating type, on the same device."""
    at_once = max(1, ELEMENTS_AT_ONCE // weights.shape[1])
    for first in range(0, weights.shape[0], at_once):
        last = min(first + at_once, weights.shape[0])
        _ROUNDED[target.precision](rows_of(target, first, last), weights[first:last].float())


def round_int8(target: QuantizedMatrix, rows: Tensor) -> None:
    """Symmetric: the largest of a row becomes ±127. Clipping some of the range has a larger squared error in
    eight bits (SmolLM2-135M)."""
    target.scales.copy_(_divisor((rows.abs().amax(1) / INT8_MAX).to(target.scales.dtype)))
    numbers = rows / target.scales.float()[:, None]
    target.numbers.copy_(numbers.round_().clamp_(-INT8_MAX, INT8_MAX))


def round_fp8(target: QuantizedMatrix, rows: Tensor) -> None:
    """e4m3, with the scale of least squared error of those that clip nothing."""
    assert not target.block_scaled, "block-scaled FP8 is read, never made"
    smallest = rows.abs().amax(1, keepdim=True) / FP8_MAX
    sample = rows[:, :: max(1, rows.shape[1] // FP8_LOOKED_AT)].contiguous()
    best, least = _divisor(smallest), torch.full_like(smallest, torch.inf)
    for factor in FP8_FACTORS:
        scale = _divisor(smallest * factor)
        rounded = e4m3(sample, scale).float().mul_(scale)
        error = rounded.sub_(sample).square_().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    target.scales.copy_(best.squeeze(1))
    target.numbers.copy_(e4m3(rows, best))


def e4m3(rows: Tensor, scales: Tensor) -> Tensor:
    """FP8 numbers of FP32 rows (…, columns) divided by scales (…, 1), saturated: torch's cast makes NaN of
    what is larger."""
    return (rows / scales).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def round_int4(target: QuantizedMatrix, rows: Tensor, shrinks: tuple[float, ...] | None = None) -> None:
    """number * scale + minimum with numbers from 0 to 15: of the shares of a group's range, the one of least
    squared error."""
    assert target.group is not None
    assert target.minimums is not None
    numbers = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    whole = rows.shape[1] // target.group * target.group
    # The last group of a row may be shorter than the others.
    for first, last in ((0, whole), (whole, rows.shape[1])):
        if first == last:
            continue
        groups = slice(first // target.group, -(-last // target.group))
        weights = rows[:, first:last].reshape(rows.shape[0], groups.stop - groups.start, -1)
        found, scales, minimums = _least_error(weights, target.scales.dtype, shrinks or SHRINKS)
        numbers[:, first:last] = found.flatten(1)
        target.scales[:, groups] = scales.squeeze(-1)
        target.minimums[:, groups] = minimums.squeeze(-1)
    target.numbers.copy_(pack_int4(numbers))


def _least_error(
    weights: Tensor, kept: torch.dtype, shrinks: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of weights (rows, groups, columns), and scale and minimum of each group (rows, groups, 1)."""
    low, high = weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True)
    middle, reach = (low + high) / 2, (high - low) / 2
    best: tuple[Tensor, Tensor, Tensor] | None = None
    least = torch.full_like(low, torch.inf)
    for shrink in shrinks:
        step = (shrink * reach * (2 / INT4_MAX)).to(kept).float()
        scale, minimum = _divisor(step), (middle - step * (INT4_MAX / 2)).to(kept).float()
        numbers = ((weights - minimum) / scale).round_().clamp_(0, INT4_MAX)
        error = (numbers * scale).add_(minimum).sub_(weights).square_().sum(-1, keepdim=True)
        found = numbers.to(torch.uint8), scale, minimum
        if best is None:
            best, least = found, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = (
            torch.where(better, found[0], best[0]),
            torch.where(better, found[1], best[1]),
            torch.where(better, found[2], best[2]),
        )
    assert best is not None
    return best


def _divisor(scale: Tensor) -> Tensor:
    """FP32. A scale of 0 is that of rows of zeros, of groups of one value, or of numbers so small that the
    type has none for their scale: 1 makes all of them number 0."""
    return torch.where(scale == 0, 1.0, scale.float())


_ROUNDED = {Precision.INT8: round_int8, Precision.FP8: round_fp8, Precision.INT4: round_int4}
