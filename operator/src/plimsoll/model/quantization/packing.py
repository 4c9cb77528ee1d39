"""The tensors that one packed matrix becomes, with their shapes.

Sources: AutoGPTQ `qlinear_cuda_old.py`, AutoAWQ `gemm.py`, bitsandbytes `functional.py` (QuantState.as_dict),
compressed-tensors `compressors/`, TensorRT Model Optimizer's export, DeepSeek-V3 `inference/kernel.py`,
transformers `integrations/mxfp4.py`. Checked against published sizes: tests/unit/model/test_published.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plimsoll.model.blueprint import Tensor
from plimsoll.model.safetensors import DTYPE_BYTES

BLOCKWISE_ELEMENTS = 64
"""bitsandbytes: numbers that share one absmax."""
NESTED_BLOCK = 256
"""bitsandbytes: absmax values that share one nested absmax."""
QUANT_STATE_BYTES = 96
"""bitsandbytes writes its state as JSON of about this length; the one part without a closed form."""
MXFP4_BLOCK, NVFP4_BLOCK = 32, 16


class Part(NamedTuple):
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


Format = Literal[
    "gptq", "awq", "nf4", "bnb-int8", "fp8-block", "fp8-tensor", "fp8-channel", "fbgemm", "pack", "int8",
    "mxfp4", "mxfp4-pack", "nvfp4", "nvfp4-pack",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a matrix is packed."""

    format: Format
    bits: int = 8
    group: int = 0
    """Numbers of a row that share a scale; 0: the whole row."""
    block: tuple[int, int] = (128, 128)
    symmetric: bool = True
    double: bool = False
    """bitsandbytes: the absmax values are quantized once more."""
    reordered: bool = False
    """compressed-tensors: columns were reordered and carry their group's number."""
    static_input: bool = False
    """The scale of the activations is stored."""

    def parts(self, tensor: Tensor, name: str, scale_dtype: str) -> Iterator[Part]:
        """What stands in the files for one copy of `tensor`, whose module is called `name`."""
        if len(tensor.shape) == 3:
            yield from self._stacked(tensor, name)
            return
        match self.format:
            case "gptq" | "awq":
                yield from self._autogptq(tensor, name)
            case "nf4" | "bnb-int8":
                yield from self._bitsandbytes(tensor, name)
            case "pack":
                yield from self._packed_integers(tensor, name, scale_dtype)
            case "mxfp4" | "mxfp4-pack" | "nvfp4" | "nvfp4-pack":
                yield from self._four_bit_floats(tensor, name)
            case _:
                yield from self._eight_bits(tensor, name, scale_dtype)
        if self.static_input:
            scale = "input_global_scale" if self.format == "nvfp4-pack" else "input_scale"
            yield Part(f"{name}.{scale}", "F32", ())

    def _groups(self, columns: int) -> int:
        return -(-columns // self.group) if self.group else 1

    def _autogptq(self, tensor: Tensor, name: str) -> Iterator[Part]:
        rows, columns = tensor.shape
        groups, zeros = self._groups(columns), rows * self.bits // 32
        packed = (columns * self.bits // 32, rows) if self.format == "gptq" else (columns, zeros)
        yield Part(f"{name}.qweight", "I32", packed)
        yield Part(f"{name}.qzeros", "I32", (groups, zeros))
        yield Part(f"{name}.scales", "F16", (groups, rows))
        if self.format == "gptq":
            yield Part(f"{name}.g_idx", "I32", (columns,))

    def _eight_bits(self, tensor: Tensor, name: str, scale_dtype: str) -> Iterator[Part]:
        rows, columns = tensor.shape
        yield Part(f"{name}.weight", "I8" if self.format == "int8" else "F8_E4M3", tensor.shape)
        match self.format:
            case "fp8-block":
                across = (-(-rows // self.block[0]), -(-columns // self.block[1]))
                yield Part(f"{name}.weight_scale_inv", "F32", across)
            case "fp8-tensor":
                yield Part(f"{name}.weight_scale", "F32", ())
            case "fbgemm":
                yield Part(f"{name}.weight_scale", "F32", (rows, 1))
                yield Part(f"{name}.input_scale_ub", "F32", (1,))
            case _:
                yield Part(f"{name}.weight_scale", scale_dtype, (rows, self._groups(columns)))

    def _packed_integers(self, tensor: Tensor, name: str, scale_dtype: str) -> Iterator[Part]:
        rows, columns = tensor.shape
        groups = self._groups(columns)
        yield Part(f"{name}.weight_packed", "I32", (rows, -(-columns * self.bits // 32)))
        yield Part(f"{name}.weight_scale", scale_dtype, (rows, groups))
        yield Part(f"{name}.weight_shape", "I64", (2,))
        if not self.symmetric:
            yield Part(f"{name}.weight_zero_point", "I32", (-(-rows * self.bits // 32), groups))
        if self.reordered:
            yield Part(f"{name}.weight_g_idx", "I32", (columns,))

    def _four_bit_floats(self, tensor: Tensor, name: str) -> Iterator[Part]:
        rows, columns = tensor.shape
        nvidia = self.format.startswith("nvfp4")
        place = "weight" if self.format == "nvfp4" else "weight_packed"
        block = NVFP4_BLOCK if nvidia else MXFP4_BLOCK
        yield Part(f"{name}.{place}", "U8", (rows, columns // 2))
        yield Part(f"{name}.weight_scale", "F8_E4M3" if nvidia else "U8", (rows, -(-columns // block)))
        if self.format == "nvfp4":
            yield Part(f"{name}.weight_scale_2", "F32", ())
        elif nvidia:
            yield Part(f"{name}.weight_global_scale", "F32", (1,))

    def _stacked(self, tensor: Tensor, name: str) -> Iterator[Part]:
        """Experts in one tensor: MXFP4 as gpt-oss stores it, transposed; others scale each matrix in blocks
        or as a whole."""
        count, inner, outer = tensor.shape
        if self.format == "mxfp4":
            yield Part(f"{name}_blocks", "U8", (count, outer, inner // MXFP4_BLOCK, MXFP4_BLOCK // 2))
            yield Part(f"{name}_scales", "U8", (count, outer, inner // MXFP4_BLOCK))
        elif self.format == "fp8-block":
            yield Part(name, "F8_E4M3", tensor.shape)
            across = (count, -(-inner // self.block[0]), -(-outer // self.block[1]))
            yield Part(f"{name}_scale_inv", "F32", across)
        else:
            raise ValueError(f"{self.format} of experts in one tensor")

    def _bitsandbytes(self, tensor: Tensor, name: str) -> Iterator[Part]:
        elements = tensor.elements
        if self.format == "bnb-int8":
            yield Part(f"{name}.weight", "I8", tensor.shape)
            yield Part(f"{name}.SCB", "F32", tensor.shape[:1])
            yield Part(f"{name}.weight_format", "U8", ())
            return
        blocks = -(-elements // BLOCKWISE_ELEMENTS)
        yield Part(f"{name}.weight", "U8", (-(-elements // 2), 1))
        yield Part(f"{name}.weight.absmax", "U8" if self.double else "F32", (blocks,))
        yield Part(f"{name}.weight.quant_map", "F32", (16,))
        if self.double:
            yield Part(f"{name}.weight.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK),))
            yield Part(f"{name}.weight.nested_quant_map", "F32", (256,))
        yield Part(f"{name}.weight.quant_state.bitsandbytes__nf4", "U8", (QUANT_STATE_BYTES,))
