"""How a matrix of a layer is kept in fewer bits, and its memory.

A form says everything but the matrix's size, so a model's memory is known before a weight is read: numbers,
scales and minimums get their places once, and what is read goes straight there, region by region.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.kernels.matrix import FP8_BLOCK, INT4_BLOCK, QuantizedMatrix
from plimsoll_worker.launch import GGUF_BLOCKS, INT4_GROUP, Precision

NUMBERS = {Precision.INT8: torch.int8, Precision.INT4: torch.uint8, Precision.FP8: torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix (outputs, inputs) is kept; `kernels.matrix.QuantizedMatrix` has what each form means."""

    precision: Precision
    """INT8, INT4 or FP8."""
    group: int | None = None
    """INT4: columns that share a scale and a minimum. INT8: that share a scale; None: all of a row."""
    in_blocks: bool = False
    """FP8 with a scale for each 128 by 128 block in place of one for each row."""
    scale: Precision | None = None
    """INT8 in groups: what scales are kept in; None: what is computed in."""

    @classmethod
    def on_load(cls, precision: Precision) -> Form | None:
        """What the weights of a 16-bit checkpoint are rounded to while they are read; None: not at all."""
        if precision.computes:
            return None
        return cls(precision, group=INT4_GROUP if precision is Precision.INT4 else None)

    @classmethod
    def of_block(cls, kind: str) -> Form:
        """What matrices of a GGUF block type are kept in, number by number."""
        block = GGUF_BLOCKS[kind]
        return cls(block.precision, group=block.group, scale=block.scale)

    def check(self, name: str, outputs: int, inputs: int, *, count: int = 1) -> None:
        """Raise ModelUnsupported where a matrix of this size, or `count` of them one below the other, cannot
        be kept so."""
        if self.precision is Precision.INT4 and inputs % INT4_BLOCK:
            raise ModelUnsupported(
                f"{name} is {outputs} x {inputs}: INT4 wants a multiple of "
                f"{INT4_BLOCK} columns; INT8 takes any number"
            )
        if self.in_blocks and count > 1 and outputs % FP8_BLOCK:
            raise ModelUnsupported(
                f"{name} is {count} experts of {outputs} x {inputs}: they begin inside blocks of {FP8_BLOCK}"
                " rows that share scales; use the unquantized model"
            )

    def check_cut(
        self, name: str, *, columns: tuple[int, int] | None, rows: Iterable[tuple[int, int] | None]
    ) -> None:
        """Raise ModelUnsupported where a part of a matrix, columns or rows from first to last (exclusive),
        cuts numbers apart that share a scale."""
        across = FP8_BLOCK if self.in_blocks else 1
        for first, last in filter(None, rows):
            if first % across:
                raise ModelUnsupported(
                    f"{name}: rows {first} to {last} of a matrix begin inside a block of {across} that shares"
                    " scales; use the unquantized model, or another tensorParallel"
                )
        along = FP8_BLOCK if self.in_blocks else self.group or 1
        if columns is not None and any(place % along for place in columns):
            raise ModelUnsupported(
                f"{name}: columns {columns[0]} to {columns[1]} of a rank cut a group of {along} that shares a"
                " scale; use another tensorParallel"
            )

    def make(
        self, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device | str
    ) -> QuantizedMatrix:
        """Memory for a matrix that computes in `dtype`."""
        assert not self.precision.computes
        width = inputs // 2 if self.precision is Precision.INT4 else inputs
        scales, scale_type = self._scales(outputs, inputs, dtype)
        has_minimums = self.precision is Precision.INT4
        minimums = torch.empty(scales, dtype=dtype, device=device) if has_minimums else None
        return QuantizedMatrix(
            precision=self.precision,
            numbers=torch.empty(outputs, width, dtype=NUMBERS[self.precision], device=device),
            scales=torch.empty(scales, dtype=scale_type, device=device),
            minimums=minimums,
            group=self.group,
            dtype=dtype,
        )

    def _scales(self, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of the scales."""
        if self.in_blocks:
            return (-(-outputs // FP8_BLOCK), -(-inputs // FP8_BLOCK)), torch.float32
        if self.group is not None:
            kept = torch.float16 if self.scale is Precision.FP16 else dtype
            return (outputs, -(-inputs // self.group)), kept
        return (outputs,), torch.float32 if self.precision is Precision.FP8 else dtype


def columns_of(matrix: QuantizedMatrix, first: int, last: int) -> QuantizedMatrix:
    """Columns first (inclusive) to last (exclusive), whole groups: a view."""
    group = FP8_BLOCK if matrix.block_scaled else matrix.group or 1
    assert first % group == last % group == 0, f"columns {first} to {last} cut a group of {group}"
    per_byte = 2 if matrix.precision is Precision.INT4 else 1
    groups = slice(first // group, last // group)
    return replace(
        matrix,
        numbers=matrix.numbers[:, first // per_byte : last // per_byte],
        scales=matrix.scales[:, groups] if matrix.scales.dim() == 2 else matrix.scales,
        minimums=None if matrix.minimums is None else matrix.minimums[:, groups],
    )


def copy_matrix(source: QuantizedMatrix, target: QuantizedMatrix) -> None:
    """Fill `target`, of the same form, on any device."""
    target.numbers.copy_(source.numbers)
    target.scales.copy_(source.scales)
    if target.minimums is not None:
        assert source.minimums is not None
        target.minimums.copy_(source.minimums)
