"""What weights are kept in when the engine quantizes a 16-bit checkpoint while loading it.

The launch contract names the element types and how scales are kept (`WeightsScheme.quantized`); here stand
the bytes that follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll_worker.launch import INT4_GROUP, Precision


@dataclass(frozen=True, kw_only=True)
class QuantizationScheme:
    """Numbers of `bits`, of which each row, or each group within a row, shares a scale."""

    name: str
    bits: int
    group: int | None
    """Numbers along a row that share a scale; None: the whole row. The last group of a row may be short."""
    group_bytes: int
    """Scale, and minimum where there is one, of a group."""

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix whose rows are outputs: rows × (packed numbers + scales)."""
        return rows * (-(-columns * self.bits // 8) + self.scale_bytes(columns))

    def scale_bytes(self, columns: int) -> int:
        """Bytes of the scales of one row."""
        return self.group_bytes * (1 if self.group is None else -(-columns // self.group))


INT8 = QuantizationScheme(name="INT8", bits=8, group=None, group_bytes=2)
"""Symmetric, one 16-bit scale per output channel."""
INT4 = QuantizationScheme(name="INT4", bits=4, group=INT4_GROUP, group_bytes=2 + 2)
"""Two weights a byte, a 16-bit scale and a 16-bit minimum per group: rounding to nearest without calibration
loses less with a minimum, and torch's own INT4 kernel keeps the pair."""
FP8 = QuantizationScheme(name="FP8", bits=8, group=None, group_bytes=4)
"""e4m3; `torch._scaled_mm` takes row-wise scales in FP32 only."""
SCHEMES = {Precision.INT8: INT8, Precision.INT4: INT4, Precision.FP8: FP8}


@dataclass(frozen=True)
class Quantized:
    """Matrices in a scheme, and the precision of what stays unquantized."""

    scheme: QuantizationScheme
    rest: Precision
