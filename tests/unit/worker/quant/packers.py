"""Quantized checkpoints written by the published description of each format, number by number in plain
Python: nothing of the engine's own packing is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Packed = tuple[Mapping[str, Tensor], Tensor]
"""Tensors by the ends of their names, and the weights that they stand for (FP64)."""
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column of eight whose number is the i-th four bits of a word (AutoAWQ, `WQLinear_GEMM.from_linear`)."""


@dataclass(frozen=True)
class Packer:
    """A format: what config.json says, and how a weight (outputs, inputs) is packed."""

    config: Mapping[str, Any]
    pack: Callable[[Tensor], Packed]


def words(numbers: list[list[int]], bits: int) -> Tensor:
    """Rows of numbers, the first in the lowest bits of an int32."""
    per_word = 32 // bits
    rows = []
    for row in numbers:
        row = row + [0] * (-len(row) % per_word)
        values = [
            sum(row[first + place] << bits * place for place in range(per_word))
            for first in range(0, len(row), per_word)
        ]
        rows.append([value - 2**32 if value >= 2**31 else value for value in values])
    return torch.tensor(rows, dtype=torch.int32)


def grouped(weight: Tensor, group: int, *, symmetric: bool, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (outputs, inputs) from 0, zero points and scales (outputs, groups) in FP16, to nearest."""
    outputs, inputs = weight.shape
    most = 2**bits - 1
    parts = weight.double().reshape(outputs, -1, group)
    if symmetric:
        scales = (parts.abs().amax(-1) / (2 ** (bits - 1) - 0.5)).half()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
        scales = ((high - low) / most).half()
        zeros = (-low / scales.double()).round().clamp(1, most).half()
    numbers = (parts / scales.double()[..., None]).round() + zeros.double()[..., None]
    return numbers.clamp(0, most).long().reshape(outputs, inputs), zeros.long(), scales


def meant(numbers: Tensor, zeros: Tensor, scales: Tensor, group: int) -> Tensor:
    wide = [each.double().repeat_interleave(group, 1) for each in (zeros, scales)]
    return (numbers.double() - wide[0]) * wide[1]


def gptq(group: int, *, symmetric: bool, version: str = "gptq") -> Packer:
    """AutoGPTQ: `qweight` holds eight inputs a word; zero points less one, but in version 2."""

    def pack(weight: Tensor) -> Packed:
        columns = weight.shape[1] if group == -1 else group
        numbers, zeros, scales = grouped(weight, columns, symmetric=symmetric)
        stored = zeros - (1 if version == "gptq" else 0)
        return {
            ".qweight": words(numbers.tolist(), 4).t().contiguous(),
            ".qzeros": words(stored.t().tolist(), 4),
            ".scales": scales.t().contiguous(),
            ".g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // columns,
        }, meant(numbers, zeros, scales, columns)

    config = {"bits": 4, "group_size": group, "desc_act": False, "sym": symmetric}
    return Packer({"quant_method": "gptq", "checkpoint_format": version, **config}, pack)


def awq(group: int) -> Packer:
    """AutoAWQ gemm: eight outputs a word, in an order of its own."""

    def ordered(rows: Tensor) -> Tensor:
        taken = rows.reshape(rows.shape[0], -1, 8)[:, :, list(AWQ_COLUMNS)]
        return words(taken.reshape(rows.shape).tolist(), 4)

    def pack(weight: Tensor) -> Packed:
        numbers, zeros, scales = grouped(weight, group, symmetric=False)
        return {
            ".qweight": ordered(numbers.t()),
            ".qzeros": ordered(zeros.t()),
            ".scales": scales.t().contiguous(),
        }, meant(numbers, zeros, scales, group)

    config = {"bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Packer({"quant_method": "awq", **config}, pack)


def compressed(layout: str, weights: Mapping[str, Any], pack: Callable[[Tensor], Packed]) -> Packer:
    group = {"targets": ["Linear"], "weights": {"dynamic": False, **weights}, "input_activations": None}
    config = {"format": layout, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return Packer({"quant_method": "compressed-tensors", **config}, pack)


def pack_quantized(bits: int, group: int | None, *, symmetric: bool = True) -> Packer:
    """compressed-tensors: numbers along the inputs, half their range added; zero points along the outputs."""

    def pack(weight: Tensor) -> Packed:
        columns = group or weight.shape[1]
        numbers, zeros, scales = grouped(weight, columns, symmetric=symmetric, bits=bits)
        beside = {} if symmetric else {".weight_zero_point": words(zeros.t().tolist(), bits).t().contiguous()}
        return {
            ".weight_packed": words(numbers.tolist(), bits),
            ".weight_scale": scales,
            ".weight_shape": torch.tensor(weight.shape),
            **beside,
        }, meant(numbers, zeros, scales, columns)

    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return compressed(
        "pack-quantized", {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}, pack
    )


def float_quantized(strategy: str) -> Packer:
    """compressed-tensors FP8: a scale a row, or one."""

    def pack(weight: Tensor) -> Packed:
        most = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().amax()[None]
        scales = (most / 448).bfloat16()
        numbers = (weight / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {".weight": numbers, ".weight_scale": scales}, numbers.double() * scales.double()

    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    return compressed("float-quantized", weights, pack)


def int_quantized() -> Packer:
    """compressed-tensors INT8: a byte a number."""

    def pack(weight: Tensor) -> Packed:
        scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
        numbers = (weight / scales.float()).round().clamp(-128, 127).to(torch.int8)
        return {".weight": numbers, ".weight_scale": scales}, numbers.double() * scales.double()

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    return compressed("int-quantized", weights, pack)


def fp8_blocks() -> Packer:
    """DeepSeek-V3, Qwen3-FP8: a scale for each 128 by 128."""

    def pack(weight: Tensor) -> Packed:
        tiles = weight.reshape(weight.shape[0] // 128, 128, weight.shape[1] // 128, 128)
        scales = tiles.abs().amax((1, 3)) / 448
        numbers = (tiles / scales[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        means = numbers.double() * scales.double()[:, None, :, None]
        return {
            ".weight": numbers.reshape(weight.shape),
            ".weight_scale_inv": scales,
        }, means.reshape(weight.shape)

    return Packer({"quant_method": "fp8", "weight_block_size": [128, 128]}, pack)
