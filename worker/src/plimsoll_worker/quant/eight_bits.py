"""FP8 and INT8 matrices that lie in a checkpoint as they are: one number a byte, scales beside them.

Sources: DeepSeek-V3 `inference/kernel.py` and transformers `integrations/finegrained_fp8.py` (blocks),
compressed-tensors `compressors/naive_quantized` (rows, or one scale for all).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plimsoll_worker.kernels.matrix import FP8_BLOCK, QuantizedMatrix
from plimsoll_worker.launch import Precision
from plimsoll_worker.quant.form import Form
from plimsoll_worker.quant.four_bits import int8_matrix
from plimsoll_worker.quant.stored import Shapes, Tensors, refuse


@dataclass(frozen=True)
class Bytes:
    """A weight of one byte a number. Scales of activations (`input_scale`) are not used: the engine finds its
    own, from each row."""

    precision: Precision
    """FP8 or INT8."""
    scale: str
    in_blocks: bool = False
    numbers = ".weight"

    @property
    def beside(self) -> tuple[str, ...]:
        return (self.scale, ".input_scale")

    def shape(self, stored: Shapes) -> tuple[int, int]:
        outputs, inputs = stored[".weight"]
        return outputs, inputs

    def form(self, name: str, stored: Shapes) -> Form:
        (outputs, inputs), scales = self.shape(stored), stored[self.scale]
        if self.in_blocks:
            blocks = (-(-outputs // FP8_BLOCK), -(-inputs // FP8_BLOCK))
            if tuple(scales) != blocks:
                raise refuse(name, f"scales {list(scales)}", f"blocks of {FP8_BLOCK} x {FP8_BLOCK}")
        elif scales.numel() not in (1, outputs):
            raise refuse(name, f"scales {list(scales)}", "one scale a row or one for all")
        return Form(self.precision, in_blocks=self.in_blocks)

    def unpack(self, name: str, stored: Tensors, dtype: torch.dtype) -> QuantizedMatrix:
        del name
        numbers, scales = stored[".weight"], stored[self.scale]
        if self.precision is Precision.INT8:
            return int8_matrix(numbers, scales, dtype)
        wide = scales.float()
        if not self.in_blocks:
            wide = wide.flatten().expand(numbers.shape[0])
        return QuantizedMatrix(
            precision=Precision.FP8,
            numbers=numbers,
            scales=wide.contiguous(),
            minimums=None,
            group=None,
            dtype=dtype,
        )
