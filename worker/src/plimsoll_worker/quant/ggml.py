"""Matrices in the block types of a GGUF file, as numbers and scales of the engine's own forms.

Numbers stay the numbers of the file. A type with scales in two levels (K-quants: an FP16 of 256 columns times
6 or 8 bits of 16 or 32) gets one scale a group, their product, which FP32 holds exactly; kept in 16 bit it is
rounded once, by no more than a weight is that is multiplied in 16 bit. Keeping both levels was the
alternative: 0.4 bits a weight less, for a second load and product in every kernel.

Source: the structs of ggml-common.h and `dequantize_row_*` of ggml-quants.c. Everything is elementwise over
blocks, on any device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plimsoll_worker.kernels.matrix import QuantizedMatrix, pack_int4
from plimsoll_worker.launch import Precision
from plimsoll_worker.quant.form import Form

BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34, "Q4_K": 144, "Q6_K": 210}

Unpacked = tuple[Tensor, Tensor, Tensor | None]
"""Of blocks (rows, blocks, bytes): numbers (rows, blocks, columns), and scales and minimums (rows, blocks,
groups), exact."""


def unpack_blocks(kind: str, raw: Tensor, dtype: torch.dtype) -> QuantizedMatrix:
    """raw (rows, bytes of a row) uint8, whole blocks of `kind` → the rows, computing in `dtype`."""
    form = Form.of_block(kind)
    numbers, scales, minimums = _UNPACKED[kind](raw.reshape(len(raw), -1, BLOCK_BYTES[kind]))
    whole = numbers.flatten(1)
    return QuantizedMatrix(
        precision=form.precision,
        numbers=pack_int4(whole) if form.precision is Precision.INT4 else whole,
        scales=scales.flatten(1).to(torch.float16 if form.scale is Precision.FP16 else dtype),
        minimums=None if minimums is None else minimums.flatten(1).to(dtype),
        group=form.group,
        dtype=dtype,
    )


def _floats(halves: Tensor) -> Tensor:
    """(…, 2) bytes of one FP16 → (…, 1) FP32."""
    return halves.contiguous().view(torch.float16).float()


def _split(values: Tensor, parts: int) -> Tensor:
    """(…, n) → (…, parts, n / parts)."""
    return values.reshape(*values.shape[:-1], parts, -1)


def _halves_of_bytes(pairs: Tensor) -> Tensor:
    """(…, n) bytes of two numbers → (…, 2 n): all low ones, then all high ones."""
    return torch.cat((pairs & 15, pairs >> 4), dim=-1)


def _q4_0(blocks: Tensor) -> Unpacked:
    """d, 16 bytes: d * (number - 8)."""
    scales = _floats(blocks[..., :2])
    return _halves_of_bytes(blocks[..., 2:]), scales, -8 * scales


def _q4_1(blocks: Tensor) -> Unpacked:
    """d, m, 16 bytes: d * number + m."""
    return _halves_of_bytes(blocks[..., 4:]), _floats(blocks[..., :2]), _floats(blocks[..., 2:4])


def _q8_0(blocks: Tensor) -> Unpacked:
    """d, 32 signed bytes."""
    return blocks[..., 2:].contiguous().view(torch.int8), _floats(blocks[..., :2]), None


def _q4_k(blocks: Tensor) -> Unpacked:
    """d, dmin, 12 bytes of scales and minimums, 128 bytes: groups of d * scale * number - dmin * min."""
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=-1)
    minimums = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=-1)
    # Of each 32 bytes the low halves are a group, the high ones the next.
    numbers = _halves_of_bytes(_split(blocks[..., 16:], 4)).flatten(-2)
    return numbers, _floats(blocks[..., :2]) * scales, -(_floats(blocks[..., 2:4]) * minimums)


def _q6_k(blocks: Tensor) -> Unpacked:
    """128 bytes of lower four bits, 64 of upper two, 16 signed scales, d: groups of d * scale * (number -
    32)."""
    low = _halves_of_bytes(_split(blocks[..., :128], 2))
    upper = _split(blocks[..., 128:192], 2)
    high = torch.cat([upper >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    numbers = (low | high << 4).flatten(-2).to(torch.int8) - 32
    scales = blocks[..., 192:208].contiguous().view(torch.int8)
    return numbers, _floats(blocks[..., 208:]) * scales, None


_UNPACKED: dict[str, Callable[[Tensor], Unpacked]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
