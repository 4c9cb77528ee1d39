"""Devices, element types, and how weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from plimsoll_worker.launch.wire import Wire


class Device(StrEnum):
    """The kind of device the weights live on."""

    GPU = "GPU"
    CPU = "CPU"


class Precision(StrEnum):
    """Element types. Engines compute in the first three; the others only hold: weights, and FP8 also keys
    and values."""

    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    FP8 = "FP8"
    """e4m3."""
    INT8 = "INT8"
    INT4 = "INT4"

    @property
    def bits(self) -> int:
        return _BITS[self]

    @property
    def bytes(self) -> int:
        """Of one element. Two INT4 numbers share a byte, so they have none of their own."""
        assert self is not Precision.INT4, "INT4 numbers are counted in bits"
        return self.bits // 8

    @property
    def computes(self) -> bool:
        """Whether an engine computes in it, and so can keep everything in it."""
        return self in (Precision.FP32, Precision.FP16, Precision.BF16)


_BITS = {
    Precision.FP32: 32,
    Precision.FP16: 16,
    Precision.BF16: 16,
    Precision.FP8: 8,
    Precision.INT8: 8,
    Precision.INT4: 4,
}


class WeightsScheme(Wire):
    """How weights are kept on the device."""

    name: Precision
    """Element type of the matrices. Of a quantized checkpoint: of what it leaves unquantized."""
    bits: int
    group_size: int | None = None
    """Numbers along a row that share a scale; None: the whole row, or there are no scales."""
    scale_type: str | None = None
    """Element type of the scales; None: there are none."""
    compute: Precision | None = None
    """What embedding, head, norms and biases are kept in, and all is computed in; None: `name`."""
    checkpoint: str | None = None
    """Format of a quantized checkpoint whose matrices stay as they are stored, for example gptq. A GGUF file
    may be planned so (GGUF), or widened like any other."""

    @property
    def computed_in(self) -> Precision:
        """What all that is not quantized is kept in."""
        return self.compute or self.name

    @classmethod
    def plain(cls, precision: Precision) -> WeightsScheme:
        """Unquantized weights of one element type."""
        return cls(name=precision, bits=precision.bits)

    @classmethod
    def quantized(cls, precision: Precision, compute: Precision) -> WeightsScheme:
        """Matrices quantized while they are loaded. INT8: one scale per row, in the precision of the
        computation. INT4: a scale and a minimum per group. FP8: one scale per row, in FP32 as
        `torch._scaled_mm` takes it."""
        return cls(
            name=precision,
            bits=precision.bits,
            group_size=INT4_GROUP if precision is Precision.INT4 else None,
            scale_type=Precision.FP32 if precision is Precision.FP8 else compute,
            compute=compute,
        )

    @classmethod
    def stored(cls, checkpoint: str, compute: Precision) -> WeightsScheme:
        """A quantized checkpoint as its files hold it."""
        return cls(name=compute, bits=compute.bits, checkpoint=checkpoint)


INT4_GROUP: Final = 128
"""Numbers along a row of an INT4 matrix that share a scale and a minimum."""

GGUF: Final = "gguf"
"""The `checkpoint` of a scheme that keeps the blocks of a GGUF file."""


class BlockForm(NamedTuple):
    """What the numbers of a GGUF block type are kept in, each as it is."""

    precision: Precision
    """INT4 (a scale and a minimum for each group) or INT8 (a scale)."""
    group: int
    """Columns that share a scale."""
    scale: Precision | None = None
    """What scales are kept in; None: what is computed in."""


GGUF_BLOCKS: Final[Mapping[str, BlockForm]] = {
    "Q4_0": BlockForm(Precision.INT4, 32),
    "Q4_1": BlockForm(Precision.INT4, 32),
    "Q4_K": BlockForm(Precision.INT4, 32),
    "Q6_K": BlockForm(Precision.INT8, 16),
    # The scales stand in the file as they are kept.
    "Q8_0": BlockForm(Precision.INT8, 32, Precision.FP16),
}
"""Block types that stay as they are; the others are widened while they are read."""
