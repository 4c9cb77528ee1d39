"""What a linear layer multiplies with: a plain tensor, or numbers of fewer bits with scales.

Kernels take the numbers as they lie in memory and widen them in registers; a subclass of Tensor that hides
them was the alternative, at a dispatch in every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plimsoll_worker.launch.precision import Precision

FP8_BLOCK = 128
"""Rows and columns of a block-scaled FP8 matrix that share a scale (DeepSeek-AI 2024, arXiv:2412.19437,
section 3.3)."""
INT4_BLOCK = 32
"""Columns whose numbers lie in the same 16 bytes."""
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """(outputs, inputs), kept as numbers and scales.

    INT4 numbers are 0 to 15. Of each 32 columns of a row, byte j (0 to 15) holds column j in its low half and
    column j + 16 in its high one, as GGUF's Q4_0 and Q4_1 do; inputs and group are multiples of 32, and the
    last group of a row may be shorter.
    """

    precision: Precision
    """INT8, INT4 or FP8."""
    numbers: Tensor
    """INT8: (outputs, inputs) int8. FP8: (outputs, inputs) float8_e4m3fn. INT4: (outputs, inputs / 2)
    uint8."""
    scales: Tensor
    """INT8: (outputs) in `dtype`, or (outputs, groups) of any floating type, as a GGUF file has it. FP8:
    (outputs) FP32, or (outputs / 128, inputs / 128) FP32, rounded up, of a block-scaled checkpoint. INT4:
    (outputs, groups) in `dtype`."""
    minimums: Tensor | None
    """INT4: (outputs, groups) in `dtype`; a weight is number * scale + minimum."""
    group: int | None
    """INT4: columns that share a scale and a minimum. INT8: columns that share a scale, a multiple of 16;
    None: all of a row."""
    dtype: torch.dtype
    """Of the computation: torch.bfloat16, torch.float16 or, on CPUs, torch.float32."""

    @property
    def outputs(self) -> int:
        return self.numbers.shape[0]

    @property
    def inputs(self) -> int:
        return self.numbers.shape[1] * (2 if self.precision is Precision.INT4 else 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.outputs, self.inputs

    @property
    def nbytes(self) -> int:
        """Of numbers, scales and minimums."""
        kept = (self.numbers, self.scales, self.minimums)
        return sum(each.nbytes for each in kept if each is not None)

    @property
    def block_scaled(self) -> bool:
        """FP8 with a scale for each block of 128 by 128."""
        return self.precision is Precision.FP8 and self.scales.dim() == 2


OneMatrix = Tensor | QuantizedMatrix


@dataclass(frozen=True, slots=True)
class StackedMatrix:
    """Matrices of the same inputs, the rows of one below the other's: queries and keys in fewer bits than
    values, say, as many GGUF files have them. Each is multiplied by itself."""

    parts: tuple[OneMatrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]


Matrix = OneMatrix | StackedMatrix


def rows_of(matrix: QuantizedMatrix, first: int, last: int) -> QuantizedMatrix:
    """Rows first (inclusive) to last (exclusive): a view. Of a block-scaled matrix whole blocks, but that the
    last may be cut short by the matrix's own end."""
    across = FP8_BLOCK if matrix.block_scaled else 1
    assert first % across == 0, f"row {first} lies inside a block of scales"
    return replace(
        matrix,
        numbers=matrix.numbers[first:last],
        scales=matrix.scales[first // across : -(-last // across)],
        minimums=None if matrix.minimums is None else matrix.minimums[first:last],
    )


def pack_int4(numbers: Tensor) -> Tensor:
    """(outputs, inputs) of 0 to 15, of any integer type → (outputs, inputs / 2) uint8, in QuantizedMatrix's
    order."""
    outputs, inputs = numbers.shape
    assert inputs % INT4_BLOCK == 0, f"{inputs} columns are not a multiple of {INT4_BLOCK}"
    low, high = numbers.to(torch.uint8).view(outputs, -1, 2, INT4_BLOCK // 2).unbind(2)
    return (low | high << 4).reshape(outputs, inputs // 2)


def unpack_int4(packed: Tensor) -> Tensor:
    """(outputs, inputs / 2) uint8 → (outputs, inputs) uint8, of 0 to 15: what `pack_int4` packed."""
    outputs, width = packed.shape
    pairs = packed.view(outputs, -1, 1, INT4_BLOCK // 2)
    return torch.cat((pairs & 15, pairs >> 4), dim=2).reshape(outputs, 2 * width)


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype | None = None) -> Tensor:
    """Its weights (outputs, inputs), worked out in FP32 (FP64 for `dtype` FP64) and rounded once, to `dtype`
    or the matrix's own."""
    dtype = dtype or matrix.dtype
    weights = torch.empty(matrix.shape, dtype=dtype, device=matrix.numbers.device)
    for rows, part in dequantized_rows(matrix, torch.promote_types(dtype, torch.float32)):
        weights[rows] = part.to(dtype)
    return weights


def dequantized_rows(matrix: QuantizedMatrix, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their weights (rows, inputs) in `wide`), so that no whole wide copy exists."""
    for first in range(0, matrix.outputs, ROWS_AT_ONCE):
        rows = slice(first, min(first + ROWS_AT_ONCE, matrix.outputs))
        if matrix.group is not None:
            packed = matrix.numbers[rows]
            numbers = unpack_int4(packed) if matrix.precision is Precision.INT4 else packed
            weights = numbers.to(wide)
            for columns, groups in _groups(matrix.inputs, matrix.group):
                part = weights[:, columns].view(len(weights), groups.stop - groups.start, -1)
                part *= matrix.scales[rows, groups, None].to(wide)
                if matrix.minimums is not None:
                    part += matrix.minimums[rows, groups, None].to(wide)
            yield rows, weights
        elif matrix.block_scaled:
            lines = torch.arange(rows.start, rows.stop, device=matrix.scales.device) // FP8_BLOCK
            scales = matrix.scales[lines].repeat_interleave(FP8_BLOCK, 1)[:, : matrix.inputs]
            yield rows, matrix.numbers[rows].to(wide) * scales.to(wide)
        else:
            yield rows, matrix.numbers[rows].to(wide) * matrix.scales[rows, None].to(wide)


def _groups(inputs: int, group: int) -> Iterator[tuple[slice, slice]]:
    """(columns, their groups): all whole groups, and the last of a row where it is shorter."""
    count = inputs // group
    if count:
        yield slice(0, count * group), slice(0, count)
    if inputs % group:
        yield slice(count * group, inputs), slice(count, count + 1)
