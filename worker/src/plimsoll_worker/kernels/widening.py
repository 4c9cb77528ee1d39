"""Numbers of four and eight bits as floats, in registers.

The compiler's conversions of integers run at a quarter of the arithmetic's rate or less, which at the
memory's speed is too slow. Here a number's bits become the low mantissa bits of a float of known exponent,
which is subtracted (Kim et al. 2022, arXiv:2211.10017, section 4.3; Frantar et al. 2024, arXiv:2408.11743): a
byte permutation or a mask, and half a subtraction for each. Triton's interpreter knows no assembly: there
(not ASM) the same is said in plain operations.
"""

from __future__ import annotations

import triton
import triton.language as tl


def _lines(*lines: str) -> tl.constexpr:
    return tl.constexpr("{ " + " ".join(lines) + " }")


# 0x4B000000 | byte is 2^23 + byte; the byte is the number + 128.
_INT8_TO_FP32: tl.constexpr = _lines(
    ".reg .b32 u;",
    "xor.b32 u, $4, 0x80808080;",
    *(f"prmt.b32 ${i}, u, 0x4B000000, 0x744{i}; sub.f32 ${i}, ${i}, 0f4B000080;" for i in range(4)),
)
_FP8_TO_FP32: tl.constexpr = _lines(
    ".reg .b16 b<2>; .reg .b16 h<4>; .reg .b32 p<2>;",
    "mov.b32 {b0, b1}, $4;",
    "cvt.rn.f16x2.e4m3x2 p0, b0; cvt.rn.f16x2.e4m3x2 p1, b1;",
    "mov.b32 {h0, h1}, p0; mov.b32 {h2, h3}, p1;",
    *(f"cvt.f32.f16 ${i}, h{i};" for i in range(4)),
)
# Floats whose mantissa's bit 16 or bit 12 is 1: 0x43000000 is 128, 0x45000000 is 2048. A number of four bits
# goes to bits 16 to 19 or 12 to 15, so that four shifts are enough for eight numbers.
_INT4_TO_FP32: tl.constexpr = _lines(
    ".reg .b32 t;",
    "shl.b32 t, $8, 12; lop3.b32 $0, t, 0xF000, 0x45000000, 0xEA; lop3.b32 $4, t, 0xF0000, 0x43000000, 0xEA;",
    "shl.b32 t, $8, 8; lop3.b32 $1, t, 0xF0000, 0x43000000, 0xEA;",
    "lop3.b32 $5, $8, 0xF000, 0x45000000, 0xEA; lop3.b32 $2, $8, 0xF0000, 0x43000000, 0xEA;",
    "shr.b32 t, $8, 4; lop3.b32 $6, t, 0xF0000, 0x43000000, 0xEA;",
    "shr.b32 t, $8, 12; lop3.b32 $3, t, 0xF000, 0x45000000, 0xEA; lop3.b32 $7, t, 0xF0000, 0x43000000, 0xEA;",
)


@triton.constexpr_function
def _byte_assembly(bit: int, bf16: bool) -> str:
    """The byte from `bit` of each half of a register. BF16 has seven mantissa bits: 0x4300 | the number's
    lower seven is 128 + those, 0xC300 | its sign is -128 or -256. In FP16 0x6400 | byte is 1024 + byte."""
    shift = f"shr.b32 t, $1, {bit};" if bit else "mov.b32 t, $1;"
    if bf16:
        return (
            "{ .reg .b32 t, a, s, o; mov.b32 o, 0x3F803F80; "
            f"{shift} lop3.b32 a, t, 0x007F007F, 0x43004300, 0xEA;"
            "lop3.b32 s, t, 0x00800080, 0xC300C300, 0xEA; fma.rn.bf16x2 $0, a, o, s; }"
        )
    return (
        "{ .reg .b32 t, z; mov.b32 z, 0x64806480; "
        f"{shift} lop3.b32 t, t, 0x00FF00FF, 0x64806480, 0x6A; sub.f16x2 $0, t, z; }}"
    )


@triton.constexpr_function
def _nibble_assembly(bit: int, bf16: bool) -> str:
    """Half of a byte from `bit` of each half of a register. In FP16 0x5800 | number << 3 is 128 + number."""
    left = 0 if bf16 else 3
    shift = f"shr.b32 t, $1, {bit - left};" if bit >= left else f"shl.b32 t, $1, {left - bit};"
    mask, one = ("0x000F000F", "0x43004300") if bf16 else ("0x00780078", "0x58005800")
    return f"{{ .reg .b32 t; {shift} lop3.b32 $0, t, {mask}, {one}, 0xEA; }}"


@triton.jit
def bytes_to_fp32(words, FP8: tl.constexpr, ASM: tl.constexpr):
    """Words of four INT8 or FP8 → their four numbers in FP32, exactly."""
    if ASM:
        return tl.inline_asm_elementwise(
            _FP8_TO_FP32 if FP8 else _INT8_TO_FP32,
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:  # noqa: RET505 - what follows a return is compiled too
        return _byte(words, 0, FP8), _byte(words, 8, FP8), _byte(words, 16, FP8), _byte(words, 24, FP8)


@triton.jit
def _byte(words, BIT: tl.constexpr, FP8: tl.constexpr):
    number = (words >> BIT).to(tl.int8)
    return (number.to(tl.float8e4nv, bitcast=True) if FP8 else number).to(tl.float32)


@triton.jit
def nibbles_to_fp32(words, ASM: tl.constexpr):
    """Words of eight INT4 → the low numbers of their four bytes plus 2048, 128, 128 and 2048, then the high
    ones plus 128, 2048, 128 and 128, in FP32, exactly. Taking that away would cost a subtraction a weight;
    the sum of the inputs, once for all rows of a tile, does it too."""
    if ASM:
        return tl.inline_asm_elementwise(
            _INT4_TO_FP32,
            "=r,=r,=r,=r,=r,=r,=r,=r,r",
            [words],
            dtype=(
                tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32
            ),
            is_pure=True,
            pack=1,
        )  # fmt: skip
    else:  # noqa: RET505
        return (
            _nibble(words, 0, 2048), _nibble(words, 8, 128),
            _nibble(words, 16, 128), _nibble(words, 24, 2048),
            _nibble(words, 4, 128), _nibble(words, 12, 2048),
            _nibble(words, 20, 128), _nibble(words, 28, 128),
        )  # fmt: skip


@triton.jit
def _nibble(words, BIT: tl.constexpr, MORE: tl.constexpr):
    return (((words >> BIT) & 15) + MORE).to(tl.float32)


@triton.jit
def byte_of(pairs, BIT: tl.constexpr, dtype: tl.constexpr, ASM: tl.constexpr):
    """Two bytes of INT8 in 16 bits → the one from bit BIT (0 or 8) in `dtype`, exactly."""
    if ASM:
        return tl.inline_asm_elementwise(
            _byte_assembly(BIT, dtype == tl.bfloat16),
            "=r,r",
            [pairs],
            dtype=tl.bfloat16 if dtype == tl.bfloat16 else tl.float16,
            is_pure=True,
            pack=2,
        )
    else:  # noqa: RET505 - what follows a return is compiled too
        return (pairs >> BIT).to(tl.int8).to(tl.float32).to(dtype)


@triton.jit
def nibble_of(words, BIT: tl.constexpr, dtype: tl.constexpr, ASM: tl.constexpr):
    """INT4 in 16 bits → 128 more than the one from bit BIT (0, 4, 8 or 12) in `dtype`, exactly."""
    if ASM and words.dtype == tl.int16:
        return tl.inline_asm_elementwise(
            _nibble_assembly(BIT, dtype == tl.bfloat16),
            "=r,r",
            [words],
            dtype=tl.bfloat16 if dtype == tl.bfloat16 else tl.float16,
            is_pure=True,
            pack=2,
        )
    else:  # noqa: RET505
        return (((words >> BIT) & 15) + 128).to(tl.float32).to(dtype)
