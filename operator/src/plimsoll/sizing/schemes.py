"""What weights are kept in when the engine quantizes a 16-bit checkpoint while loading it.

The launch contract names the element types and how scales are kept (`WeightsScheme.quantized`); here stand
the bytes that follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from plimsoll.model.facts import ModelFacts, PackedMatrices, Role, TensorGroup
from plimsoll_worker.launch import GGUF, GGUF_BLOCKS, INT4_GROUP, Precision


@dataclass(frozen=True, kw_only=True)
class QuantizationScheme:
    """Numbers of `bits`, of which each row, or each group within a row, shares a scale."""

    name: str
    bits: int
    group: int | None
    """Numbers along a row that share a scale; None: the whole row. The last group of a row may be short."""
    scale: Precision | None = None
    """What scales are kept in; None: what is computed in."""
    minimums: bool = False
    """A minimum beside each scale."""
    rows_per_scale: int = 1

    def packed_bytes(self, columns: int) -> int:
        """Bytes of the numbers of one row."""
        return -(-columns * self.bits // 8)

    def scale_bytes(self, columns: int, compute: Precision) -> int:
        """Bytes of the scales and minimums of one row, or of `rows_per_scale` rows, beside what `compute` is
        computed in."""
        groups = 1 if self.group is None else -(-columns // self.group)
        return groups * (self.scale or compute).bytes * (2 if self.minimums else 1)


INT8 = QuantizationScheme(name="INT8", bits=8, group=None)
"""Symmetric, one scale per output channel."""
INT4 = QuantizationScheme(name="INT4", bits=4, group=INT4_GROUP, minimums=True)
"""Two weights a byte, a scale and a minimum per group: rounding to nearest without calibration
loses less with a minimum, and torch's own INT4 kernel keeps the pair."""
FP8 = QuantizationScheme(name="FP8", bits=8, group=None, scale=Precision.FP32)
"""e4m3; `torch._scaled_mm` takes row-wise scales in FP32 only."""
SCHEMES = {Precision.INT8: INT8, Precision.INT4: INT4, Precision.FP8: FP8}


FP8_IN_BLOCKS = replace(FP8, group=128, rows_per_scale=128)
"""As checkpoints have it (DeepSeek-V3, Qwen3); never made on load."""


def scheme_of(packed: PackedMatrices) -> QuantizationScheme:
    """How the engine keeps the matrices of a quantized checkpoint."""
    if packed.in_blocks:
        return FP8_IN_BLOCKS
    scheme = SCHEMES[Precision(packed.precision)]
    return replace(scheme, group=packed.group or None) if scheme is INT4 else scheme


BLOCKS = {
    kind: QuantizationScheme(
        name=kind,
        bits=block.precision.bits,
        group=block.group,
        scale=block.scale,
        minimums=block.precision is Precision.INT4,
    )
    for kind, block in GGUF_BLOCKS.items()
}
"""GGUF block types that the engine keeps number by number. Rows are whole blocks, and blocks whole groups."""
IN_BLOCKS = frozenset({Role.ATTENTION_Q, Role.ATTENTION_KV, Role.MLP})
"""Roles whose matrices may stay in blocks."""


def blocks_of(group: TensorGroup) -> QuantizationScheme | None:
    """How a group of a GGUF file's layer is kept where its blocks stay; None: widened."""
    return BLOCKS.get(group.dtype) if group.role in IN_BLOCKS else None


def stored_format(facts: ModelFacts) -> str:
    """The format in which matrices may stay as the files hold them; empty where there is none. A model with
    experts stays in no blocks."""
    if facts.quantization or facts.format != "gguf":
        return facts.quantization
    groups = [group for layer in facts.layers for group in layer.groups]
    experts = any(group.role is Role.EXPERT for group in groups)
    return GGUF if any(map(blocks_of, groups)) and not experts else ""


@dataclass(frozen=True)
class Stored:
    """Packed matrices of a quantized checkpoint as the engine keeps them, and the precision of the rest."""

    rest: Precision


@dataclass(frozen=True)
class Quantized:
    """Matrices in a scheme, and the precision of what stays unquantized."""

    scheme: QuantizationScheme
    rest: Precision
