"""GPTQ, AWQ and compressed-tensors' packed integers: groups of 4-bit numbers with a scale and a zero point
each.

All of them mean (number - zero) * scale, which the engine keeps as number * scale + minimum with a minimum of
-zero * scale. Layouts: AutoGPTQ `qlinear_cuda_old.py`, AutoAWQ `awq/utils/packing_utils.py`,
compressed-tensors `compressors/quantized_compressors/pack_quantized.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll_worker.kernels.matrix import INT4_BLOCK, QuantizedMatrix, pack_int4
from plimsoll_worker.launch import Precision
from plimsoll_worker.quant.form import Form
from plimsoll_worker.quant.stored import Shapes, Tensors, eighths, nibbles, refuse

PER_WORD = 8
"""4-bit numbers of an int32."""
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AutoAWQ's gemm layout puts the j-th of eight columns."""


def int4_form(name: str, inputs: int, groups: int) -> Form:
    """Raises ModelUnsupported for groups that kernels do not have."""
    group = inputs // groups
    if inputs % groups or group % INT4_BLOCK:
        raise refuse(
            name, f"{groups} groups of {inputs} columns", f"groups of a multiple of {INT4_BLOCK} columns"
        )
    return Form(Precision.INT4, group=group)


def int4_matrix(
    numbers: Tensor, zeros: Tensor | float, scales: Tensor, group: int, dtype: torch.dtype
) -> QuantizedMatrix:
    """numbers (outputs, inputs) uint8; zeros, scales (outputs, groups)."""
    wide = scales.float()
    return QuantizedMatrix(
        precision=Precision.INT4,
        numbers=pack_int4(numbers),
        scales=scales.to(dtype).contiguous(),
        minimums=(-wide * zeros).to(dtype).contiguous(),
        group=group,
        dtype=dtype,
    )


@dataclass(frozen=True)
class Gptq:
    """numbers along the inputs, transposed; zero points along the outputs, less one in the first version of
    the format (AutoGPTQ adds it while it unpacks)."""

    zero_offset: int
    numbers = ".qweight"
    beside = (".qzeros", ".scales", ".g_idx")

    def shape(self, stored: Shapes) -> tuple[int, int]:
        words, outputs = stored[".qweight"]
        return outputs, words * PER_WORD

    def form(self, name: str, stored: Shapes) -> Form:
        return int4_form(name, self.shape(stored)[1], stored[".scales"][0])

    def unpack(self, name: str, stored: Tensors, dtype: torch.dtype) -> QuantizedMatrix:
        numbers = nibbles(stored[".qweight"].t()).contiguous()
        scales, inputs = stored[".scales"].t(), numbers.shape[1]
        group = inputs // scales.shape[1]
        places = stored.get(".g_idx")
        if places is not None and not torch.equal(places.long(), torch.arange(inputs) // group):
            raise refuse(name, "columns reordered by g_idx (desc_act)", "columns in their own order")
        zeros = nibbles(stored[".qzeros"]).t().float() + self.zero_offset
        return int4_matrix(numbers, zeros, scales, group, dtype)


class Awq:
    """numbers and zero points along the outputs, in an order of eight."""

    numbers = ".qweight"
    beside = (".qzeros", ".scales")

    def shape(self, stored: Shapes) -> tuple[int, int]:
        inputs, words = stored[".qweight"]
        return words * PER_WORD, inputs

    def form(self, name: str, stored: Shapes) -> Form:
        return int4_form(name, self.shape(stored)[1], stored[".scales"][0])

    def unpack(self, name: str, stored: Tensors, dtype: torch.dtype) -> QuantizedMatrix:
        del name
        numbers = nibbles(stored[".qweight"], AWQ_ORDER).t().contiguous()
        zeros, scales = nibbles(stored[".qzeros"], AWQ_ORDER).t().float(), stored[".scales"].t()
        return int4_matrix(numbers, zeros, scales, numbers.shape[1] // scales.shape[1], dtype)


@dataclass(frozen=True)
class PackedIntegers:
    """compressed-tensors' pack-quantized: signed numbers, stored with half their range added, along the
    inputs; zero points, where there are any, along the outputs."""

    bits: int
    numbers = ".weight_packed"
    beside = (".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx")

    def shape(self, stored: Shapes) -> tuple[int, int]:
        outputs, words = stored[".weight_packed"]
        return outputs, words * 32 // self.bits

    def form(self, name: str, stored: Shapes) -> Form:
        groups = stored[".weight_scale"][1]
        if ".weight_g_idx" in stored:
            raise refuse(name, "columns reordered by weight_g_idx", "columns in their own order")
        if self.bits == PER_WORD // 2:
            return int4_form(name, self.shape(stored)[1], groups)
        if groups != 1 or ".weight_zero_point" in stored:
            raise refuse(name, "8-bit numbers in groups or with zero points", "one scale a row in 8 bits")
        return Form(Precision.INT8)

    def unpack(self, name: str, stored: Tensors, dtype: torch.dtype) -> QuantizedMatrix:
        outputs, inputs = stored[".weight_shape"].tolist()
        scales = stored[".weight_scale"]
        if (outputs, inputs) != self.shape({".weight_packed": stored[".weight_packed"].shape}):
            raise refuse(name, f"{inputs} columns, padded", "rows that fill their words")
        if self.bits != PER_WORD // 2:
            signed = eighths(stored[".weight_packed"]).to(torch.int16) - 128
            return int8_matrix(signed.to(torch.int8), scales, dtype)
        zeros = _zero_points(stored.get(".weight_zero_point"), outputs)
        numbers = nibbles(stored[".weight_packed"])
        return int4_matrix(numbers, zeros, scales, inputs // scales.shape[1], dtype)


def int8_matrix(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> QuantizedMatrix:
    """numbers (outputs, inputs) int8; scales: one, or one for each row."""
    return QuantizedMatrix(
        precision=Precision.INT8,
        numbers=numbers,
        scales=scales.flatten().to(dtype).expand(numbers.shape[0]).contiguous(),
        minimums=None,
        group=None,
        dtype=dtype,
    )


def _zero_points(stored: Tensor | None, outputs: int) -> Tensor | float:
    """(outputs, groups), of numbers from 0; packed in newer versions, signed bytes in older ones."""
    if stored is None:
        return 8.0
    if stored.dtype == torch.int8:
        return stored.float() + 8
    return nibbles(stored.t()).t()[:outputs].float()
