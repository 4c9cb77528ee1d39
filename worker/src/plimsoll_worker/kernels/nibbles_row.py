"""One row times INT4 in groups of 128 columns, on the tensor cores.

On the ordinary units a weight costs two and a half instructions, of which one multiplies, and that is slower
than the memory. A tensor core takes its operands from the registers of a warp: row g of the left one lies in
the four lanes 4g to 4g + 3, column n of the right one in lanes 4n to 4n + 3. So on the diagonal of their
product every four lanes find the sum over what they themselves hold, whichever weights these are, and nothing
has to be moved from lane to lane before. Seven eighths of the product are of no use; the tensor cores have
nothing else to do. Four lanes hold four chunks of 32 columns of a row: one group, of one scale and minimum.

It holds as long as Triton gives neighbouring chunks to neighbouring lanes (a test looks).
"""

from __future__ import annotations

import triton
import triton.language as tl

from plimsoll_worker.kernels.few_rows import finish
from plimsoll_worker.kernels.launching import ask_for, await_inputs, release_next
from plimsoll_worker.kernels.row_reading import factors_of, inputs_of, words_of

GROUP = 128
"""Columns that groups are multiples of."""


def _assembly(*products: str) -> str:
    """Those products added up, c0 to c3, and what a lane keeps of them: $0 of row g, $1 of row g + 8, 0 where
    it does not hold the diagonal."""
    return (
        "{ .reg .b32 t, g, n, a<4>, c<4>; .reg .pred p, q; "
        "mov.b32 c0, 0; mov.b32 c1, 0; mov.b32 c2, 0; mov.b32 c3, 0; "
        + " ".join(products)
        + " mov.u32 g, %laneid; and.b32 n, g, 3; shr.b32 g, g, 2; shl.b32 n, n, 1; sub.s32 g, g, n;"
        " setp.eq.s32 p, g, 0; setp.eq.s32 q, g, 1;"
        " selp.b32 c1, c1, 0, q; selp.b32 $0, c0, c1, p; selp.b32 c3, c3, 0, q; selp.b32 $1, c2, c3, p; }"
    )


def _product(left: str, pair: int, kind: str) -> str:
    return (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{c0, c1, c2, c3}}, {{{left}}}, "
        f"{{${pair}, ${pair + 1}}}, {{c0, c1, c2, c3}};"
    )


def _products_assembly(kind: str) -> str:
    """$2 to $5 and $6 to $9: a chunk of two rows; $10 to $25: x in pairs of every second column."""
    mask, one, left = ("0x000F000F", "0x43004300", 0) if kind == "bf16" else ("0x00780078", "0x58005800", 3)
    lines = []
    for word in range(4):
        for high in range(2):
            for place, (row, byte) in enumerate(((2, 0), (6, 0), (2, 8), (6, 8))):
                bit = byte + 4 * high - left
                shift = (
                    f"shr.b32 t, ${row + word}, {bit};" if bit >= 0 else f"shl.b32 t, ${row + word}, {-bit};"
                )
                lines.append(f"{shift} lop3.b32 a{place}, t, {mask}, {one}, 0xEA;")
            lines.append(_product("a0, a1, a2, a3", 10 + 8 * high + 2 * word, kind))
    return _assembly(*lines)


def _sums_assembly(kind: str) -> str:
    """$0: the sum of $2 to $17, x in pairs."""
    one = "0x3F803F80" if kind == "bf16" else "0x3C003C00"
    products = [_product("a0, a1, a0, a1", pair, kind) for pair in range(2, 18, 2)]
    return _assembly(f"mov.b32 a0, {one}; mov.b32 a1, 0;", *products)


_PRODUCTS_BF16: tl.constexpr = tl.constexpr(_products_assembly("bf16"))
_PRODUCTS_FP16: tl.constexpr = tl.constexpr(_products_assembly("f16"))
_SUMS_BF16: tl.constexpr = tl.constexpr(_sums_assembly("bf16"))
_SUMS_FP16: tl.constexpr = tl.constexpr(_sums_assembly("f16"))


@triton.jit
def _quarters(words, ROWS: tl.constexpr, CHUNKS: tl.constexpr):
    """(ROWS, 4 * CHUNKS) → the first, second, … of every four."""
    even, odd = tl.split(tl.reshape(words, [ROWS, CHUNKS, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _paired(low, high, BF16: tl.constexpr):
    """FP32 → both in 16 bit, in one register."""
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;" if BF16 else "cvt.rn.f16x2.f32 $0, $2, $1;",
        "=r,r,r",
        [low, high],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _eighths(x, CHUNKS: tl.constexpr):
    """(CHUNKS, 8) → eight columns."""
    even, odd = tl.split(tl.reshape(x, [CHUNKS, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _pairs(x, CHUNKS: tl.constexpr, BF16: tl.constexpr):
    """(CHUNKS, 8) → columns 0 and 2, 1 and 3, 4 and 6, 5 and 7, (1, CHUNKS) each."""
    x0, x1, x2, x3, x4, x5, x6, x7 = _eighths(x, CHUNKS)
    return (
        _paired(x0, x2, BF16)[None, :],
        _paired(x1, x3, BF16)[None, :],
        _paired(x4, x6, BF16)[None, :],
        _paired(x5, x7, BF16)[None, :],
    )


@triton.jit
def _plain_product(words, low, high):
    """Four bytes of two numbers, each 128 more, times their columns of x."""
    total = 0.0 * low[0]
    for byte in tl.static_range(4):
        total += (((words >> 8 * byte) & 15) + 128).to(tl.float32) * low[byte]
        total += (((words >> 8 * byte + 4) & 15) + 128).to(tl.float32) * high[byte]
    return total


@triton.jit
def _plain_products(words, x, ROWS: tl.constexpr, CHUNKS: tl.constexpr):
    first, second, third, fourth = _quarters(words, ROWS, CHUNKS)
    low, high = _eighths(x[0], CHUNKS), _eighths(x[2], CHUNKS)
    total = _plain_product(first, low[0:4], high[0:4]) + _plain_product(second, low[4:8], high[4:8])
    low, high = _eighths(x[1], CHUNKS), _eighths(x[3], CHUNKS)
    return total + _plain_product(third, low[0:4], high[0:4]) + _plain_product(fourth, low[4:8], high[4:8])


@triton.jit
def _laid_out(
    x, norm_weight, first, offset,
    INPUTS: tl.constexpr, CHUNKS: tl.constexpr, NORM: tl.constexpr, BF16: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """CHUNKS chunks of x from column `first`, times the norm's weight, as `_products` takes them; the sum of
    every four (1, CHUNKS), in one of the four, the others are 0; and sums of squares before the norm
    (CHUNKS)."""
    x0, raw0 = inputs_of(x, norm_weight, first, offset, INPUTS, CHUNKS, 32, NORM)
    x1, raw1 = inputs_of(x, norm_weight, first + 8, offset, INPUTS, CHUNKS, 32, NORM)
    x2, raw2 = inputs_of(x, norm_weight, first + 16, offset, INPUTS, CHUNKS, 32, NORM)
    x3, raw3 = inputs_of(x, norm_weight, first + 24, offset, INPUTS, CHUNKS, 32, NORM)
    squares = tl.sum((raw0 * raw0 + raw1 * raw1) + (raw2 * raw2 + raw3 * raw3), axis=1)
    if ASM:
        p0, p1, p2, p3 = _pairs(x0, CHUNKS, BF16)
        p4, p5, p6, p7 = _pairs(x1, CHUNKS, BF16)
        q0, q1, q2, q3 = _pairs(x2, CHUNKS, BF16)
        q4, q5, q6, q7 = _pairs(x3, CHUNKS, BF16)
        total, _ = tl.inline_asm_elementwise(
            _SUMS_BF16 if BF16 else _SUMS_FP16,
            "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [p0, p1, p2, p3, p4, p5, p6, p7, q0, q1, q2, q3, q4, q5, q6, q7],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
        pairs = (p0, p1, p2, p3, p4, p5, p6, p7, q0, q1, q2, q3, q4, q5, q6, q7)
        return pairs, total, squares
    else:  # noqa: RET505 - what follows a return is compiled too
        return (x0, x1, x2, x3), tl.sum((x0 + x1) + (x2 + x3), axis=1)[None, :], squares


@triton.jit
def _products(
    words, other, x, ROWS: tl.constexpr, CHUNKS: tl.constexpr, BF16: tl.constexpr, ASM: tl.constexpr
):
    """The sums over every four chunks of two rows (ROWS, CHUNKS), their numbers 128 more than INT4: in one of
    the four, the others are 0."""
    if ASM:
        w0, w1, w2, w3 = _quarters(words, ROWS, CHUNKS)
        v0, v1, v2, v3 = _quarters(other, ROWS, CHUNKS)
        first, second = tl.inline_asm_elementwise(
            _PRODUCTS_BF16 if BF16 else _PRODUCTS_FP16,
            "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [
                w0, w1, w2, w3, v0, v1, v2, v3, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7],
                x[8], x[9], x[10], x[11], x[12], x[13], x[14], x[15],
            ],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )  # fmt: skip
        return first, second
    else:  # noqa: RET505
        return _plain_products(words, x, ROWS, CHUNKS), _plain_products(other, x, ROWS, CHUNKS)


@triton.jit
def _end(
    acc, other_acc, squares, line, apart, eps, bias, residual, out, scale,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    gate, value = tl.sum(acc, axis=1), tl.sum(other_acc, axis=1)
    if NORM:
        root = tl.rsqrt(tl.sum(squares, axis=0) / INPUTS + eps)
        gate, value = gate * root, value * root
    if not GATED:
        finish(
            gate, gate, line, 0, bias, residual, out, scale, OUTPUTS, line < OUTPUTS,
            BIAS, RESIDUAL, GATED, SILU,
        )  # fmt: skip
        line += apart
    finish(
        value, gate, line, 0, bias, residual, out, scale, OUTPUTS, line < OUTPUTS,
        BIAS, RESIDUAL, GATED, SILU,
    )  # fmt: skip


@triton.jit
def row_of_nibbles(
    x,
    norm_weight,
    words,
    scales,
    minimums,
    bias,
    residual,
    out,
    eps,
    offset,
    scale,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BANDS: tl.constexpr,
    GROUP: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of x (INPUTS) → BANDS times BLOCK_N of OUTPUTS columns; with GATED the weight has twice as many
    rows. A group is GROUP words of a row."""
    WIDTH: tl.constexpr = INPUTS // 8
    STEP: tl.constexpr = 4 * CHUNKS
    STEPS: tl.constexpr = (WIDTH + STEP - 1) // STEP
    HEIGHT: tl.constexpr = 2 * OUTPUTS if GATED else OUTPUTS
    ROWS: tl.constexpr = BLOCK_N if GATED else BLOCK_N // 2
    APART: tl.constexpr = OUTPUTS if GATED else ROWS
    BF16: tl.constexpr = out.dtype.element_ty == tl.bfloat16
    line = tl.program_id(0) * (BLOCK_N * BANDS) + tl.arange(0, ROWS)
    tile = words_of(words, line, 0, WIDTH, HEIGHT, ROWS, CHUNKS)
    other = words_of(words, line + APART, 0, WIDTH, HEIGHT, ROWS, CHUNKS)
    factor = factors_of(scales, line, 0, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
    least = factors_of(minimums, line, 0, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
    other_factor = factors_of(scales, line + APART, 0, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
    other_least = factors_of(minimums, line + APART, 0, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
    if NORM:
        ask_for(norm_weight + tl.minimum(64 * tl.arange(0, CHUNKS), INPUTS - 1), PDL)
    await_inputs(PDL)
    release_next(PDL)
    squares = tl.zeros([CHUNKS], tl.float32)
    acc = tl.zeros([ROWS, CHUNKS], tl.float32)
    other_acc = tl.zeros([ROWS, CHUNKS], tl.float32)
    if STEPS == 1:
        # All of x stays in registers.
        laid_out, of_x, squares = _laid_out(x, norm_weight, 0, offset, INPUTS, CHUNKS, NORM, BF16, ASM)
    for turn in range(BANDS * STEPS):
        start = (turn + 1) % STEPS * STEP
        next_line = line + (turn + 1) // STEPS * BLOCK_N
        start_if = tl.where(turn + 1 < BANDS * STEPS, start, STEPS * STEP)
        later = words_of(words, next_line, start_if, WIDTH, HEIGHT, ROWS, CHUNKS)
        other_later = words_of(words, next_line + APART, start_if, WIDTH, HEIGHT, ROWS, CHUNKS)
        later_factor = factors_of(scales, next_line, start_if, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
        later_least = factors_of(minimums, next_line, start_if, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
        other_later_factor = factors_of(scales, next_line + APART, start_if, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
        other_later_least = factors_of(minimums, next_line + APART, start_if, WIDTH, HEIGHT, GROUP, 1, CHUNKS)
        if STEPS > 1:
            laid_out, of_x, more = _laid_out(
                x, norm_weight, turn % STEPS * STEP * 8, offset, INPUTS, CHUNKS, NORM, BF16, ASM
            )
            squares += more
        product, other_product = _products(tile, other, laid_out, ROWS, CHUNKS, BF16, ASM)
        acc += factor * product + (least - 128.0 * factor) * of_x
        other_acc += other_factor * other_product + (other_least - 128.0 * other_factor) * of_x
        if BANDS > 1:
            _end(
                acc, other_acc, squares, line + turn * BLOCK_N, APART, eps, bias, residual, out, scale,
                INPUTS, OUTPUTS, NORM, BIAS, RESIDUAL, GATED, SILU,
            )  # fmt: skip
            acc = tl.zeros([ROWS, CHUNKS], tl.float32)
            other_acc = tl.zeros([ROWS, CHUNKS], tl.float32)
        tile, factor, least = later, later_factor, later_least
        other, other_factor, other_least = other_later, other_later_factor, other_later_least
    if BANDS == 1:
        _end(
            acc, other_acc, squares, line, APART, eps, bias, residual, out, scale,
            INPUTS, OUTPUTS, NORM, BIAS, RESIDUAL, GATED, SILU,
        )  # fmt: skip
