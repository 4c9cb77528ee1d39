"""Paged attention, the rotation and the cache write against the reference in FP64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.unit.worker.kernels.paged import batch_of, caches, error

from plimsoll_worker.kernels import decode_attention, prefill_attention, reference, rope

EXACT = 2e-6


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    page: int = 16
    window: int | None = None
    softcap: float | None = None
    qk_norm: bool = False

    @property
    def looks(self) -> dict[str, Any]:
        return {"scale": 0.125, "window": self.window, "softcap": self.softcap}


SHAPES = [
    pytest.param(Shape(4, 2, 32, 32), id="grouped"),
    pytest.param(Shape(6, 2, 16, 16, page=64), id="groups of three, a page holds a tile"),
    pytest.param(Shape(2, 2, 24, 8, qk_norm=True), id="a head per key head, partial rotation, qk-norm"),
    pytest.param(Shape(7, 1, 16, 16, window=20), id="groups of seven, window"),
    pytest.param(Shape(4, 1, 16, 16, window=70, softcap=5.0, qk_norm=True), id="window, soft cap, qk-norm"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode_attention, prefill_attention):
        monkeypatch.setattr(module, "BLOCK_N", 16)
    monkeypatch.setattr(prefill_attention, "BLOCK_M", 32)


def wide(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) else x


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_rotates_writes_and_attends_as_the_reference(shape: Shape) -> None:
    batch = batch_of([1, 1, 1, 1], [1, 100, 0, 33], page=shape.page)
    qkv = torch.randn(4, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    keys, values = caches(batch, shape.kv_heads, shape.head_dim)
    turn = reference.rope_angles(batch.positions, torch.logspace(0, -3, shape.rotary // 2))
    norm = torch.randn(shape.head_dim) if shape.qk_norm else None
    parts: dict[str, Any] = {
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "q_norm": norm,
        "k_norm": norm,
        "norm_offset": 1.0,
    }
    wanted_keys, wanted_values = keys.double(), values.double()
    wide_parts = {name: wide(value) for name, value in parts.items()}
    q = reference.rope_store(qkv.double(), batch, turn.double(), wanted_keys, wanted_values, **wide_parts)
    wanted = reference.attention(q, wanted_keys, wanted_values, batch, **shape.looks)
    out = decode_attention.decode_attention(qkv, keys, values, batch, cos_sin=turn, **parts, **shape.looks)
    assert error(out, wanted) < EXACT
    assert not out[2].any(), "a padding row attends to nothing"
    assert error(keys, wanted_keys) < EXACT
    assert torch.equal(values.double(), wanted_values)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_and_decode_in_one_batch(shape: Shape) -> None:
    batch = batch_of([37, 1, 1, 18], [37, 90, 0, 40], page=shape.page)
    keys, values = caches(batch, shape.kv_heads, shape.head_dim)
    q = torch.randn(57, shape.heads, shape.head_dim)
    out = prefill_attention.prefill_attention(q, keys, values, batch, **shape.looks)
    wanted = reference.attention(q.double(), keys.double(), values.double(), batch, **shape.looks)
    real = torch.arange(57) != 38
    assert error(out[real], wanted[real]) < EXACT


@pytest.mark.usefixtures("small_tiles")
def test_decode_of_queries_whose_keys_are_written() -> None:
    batch = batch_of([1, 1], [70, 5])
    keys, values = caches(batch, 2, 16)
    q = torch.randn(2, 4, 16)
    out = decode_attention.decode_attention(
        q, keys, values, batch, heads=4, kv_heads=2, head_dim=16, scale=0.3
    )
    wanted = reference.attention(q.double(), keys.double(), values.double(), batch, scale=0.3)
    assert error(out, wanted) < EXACT


def test_rope_store_writes_what_is_no_padding() -> None:
    batch = batch_of([5, 1, 1], [5, 30, 0])
    keys, values = caches(batch, 3, 24)
    qkv, norm = torch.randn(7, (5 + 6) * 24), torch.randn(24)
    turn = reference.rope_angles(batch.positions, torch.logspace(0, -3, 8))
    shape: dict[str, Any] = {"heads": 5, "kv_heads": 3, "head_dim": 24}
    wanted_keys, wanted_values = keys.double(), values.double()
    wanted = reference.rope_store(
        qkv.double(), batch, turn.double(), wanted_keys, wanted_values, **shape, k_norm=norm.double()
    )
    queries = rope.rope_store(qkv, batch, turn, keys, values, **shape, k_norm=norm)
    assert error(queries, wanted) < EXACT
    assert error(keys, wanted_keys) < EXACT
    assert torch.equal(values.double(), wanted_values)


FP8 = torch.float8_e4m3fn


def rounded(cache: torch.Tensor) -> torch.Tensor:
    return cache.float().clamp(-448, 448).to(FP8).double()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_over_an_fp8_cache(shape: Shape) -> None:
    batch = batch_of([1, 1, 1, 1], [1, 100, 0, 33], page=shape.page)
    qkv = 3 * torch.randn(4, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    qkv[:, -1] = 1000.0  # a value that must saturate
    keys, values = (cache.to(FP8) for cache in caches(batch, shape.kv_heads, shape.head_dim))
    turn = reference.rope_angles(batch.positions, torch.logspace(0, -3, shape.rotary // 2))
    norm = torch.randn(shape.head_dim) if shape.qk_norm else None
    parts: dict[str, Any] = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    parts |= {"q_norm": norm, "k_norm": norm}
    wanted_keys, wanted_values = keys.double(), values.double()
    wide_parts = {name: wide(value) for name, value in parts.items()}
    q = reference.rope_store(qkv.double(), batch, turn.double(), wanted_keys, wanted_values, **wide_parts)
    wanted_keys, wanted_values = rounded(wanted_keys), rounded(wanted_values)
    wanted = reference.attention(q, wanted_keys, wanted_values, batch, **shape.looks)
    out = decode_attention.decode_attention(qkv, keys, values, batch, cos_sin=turn, **parts, **shape.looks)
    assert error(out, wanted) < EXACT
    assert torch.equal(keys.double(), wanted_keys)
    assert torch.equal(values.double(), wanted_values)
    assert wanted_values.max() == 448


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prompts_and_decode_over_an_fp8_cache(dtype: torch.dtype) -> None:
    batch = batch_of([37, 1, 18], [37, 90, 40])
    keys, values = (cache.to(FP8) for cache in caches(batch, 2, 32))
    q = torch.randn(56, 4, 32).to(dtype)
    wanted = reference.attention(q.double(), keys.double(), values.double(), batch, scale=0.125)
    out = prefill_attention.prefill_attention(q, keys, values, batch, scale=0.125)
    rounding = {torch.float32: EXACT, torch.float16: 1e-3, torch.bfloat16: 4e-3}[dtype]
    assert error(out, wanted) < rounding
    one_each = batch_of([1, 1, 1], [37, 90, 40])
    wanted = reference.attention(q[:3].double(), keys.double(), values.double(), one_each, scale=0.125)
    alone = decode_attention.decode_attention(
        q[:3], keys, values, one_each, heads=4, kv_heads=2, head_dim=32, scale=0.125
    )
    assert error(alone, wanted) < rounding


def test_every_fp8_number_is_read_as_it_is() -> None:
    batch = batch_of([1] * 8, [16] * 8)
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8)
    keys = torch.zeros(640, 1, 32).to(FP8)
    values = (
        torch.where(numbers.isnan(), 0.0, numbers.float()).to(FP8).repeat(640 * 32 // 256).view(640, 1, 32)
    )
    out = decode_attention.decode_attention(
        torch.zeros(8, 1, 32), keys, values, batch, heads=1, kv_heads=1, head_dim=32, scale=1.0
    )
    wanted = reference.attention(
        torch.zeros(8, 1, 32).double(), keys.double(), values.double(), batch, scale=1.0
    )
    assert torch.allclose(out.double(), wanted, rtol=1e-6, atol=1e-7)


def test_rope_store_rounds_what_an_fp8_cache_keeps() -> None:
    batch = batch_of([5, 1], [5, 30])
    keys, values = (cache.to(FP8) for cache in caches(batch, 3, 24))
    qkv = 200 * torch.randn(6, (5 + 6) * 24)
    turn = reference.rope_angles(batch.positions, torch.logspace(0, -3, 8))
    shape: dict[str, Any] = {"heads": 5, "kv_heads": 3, "head_dim": 24}
    wanted_keys, wanted_values = keys.clone(), values.clone()
    reference.rope_store(qkv, batch, turn, wanted_keys, wanted_values, **shape)
    rope.rope_store(qkv, batch, turn, keys, values, **shape)
    assert wanted_values.float().abs().max() == 448
    assert torch.equal(values.float(), wanted_values.float())
    differ = (keys.float() - wanted_keys.float()).abs()
    assert (differ <= keys.float().abs() / 8 + 2**-9).all(), "at most the next number"
    assert (differ > 0).float().mean() < 1e-3


def test_angles_of_far_positions() -> None:
    positions, inverse = torch.tensor([0, 1, 131071]), torch.logspace(0, -5, 12)
    out = rope.rope_angles(positions, inverse, scale=1.2)
    assert torch.allclose(out, reference.rope_angles(positions, inverse, scale=1.2), atol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "longest", "splits"),
    [
        pytest.param(1, 8192, 32, id="one sequence: as many as are weighed together"),
        pytest.param(1, 100, 2, id="a short context has few tiles"),
        pytest.param(8, 8192, 4, id="some sequences share the card"),
        pytest.param(64, 8192, 1, id="enough programs without splitting"),
    ],
)
def test_contexts_are_split_to_fill_the_card(sequences: int, longest: int, splits: int) -> None:
    assert decode_attention.splits_for(sequences, 8, longest, 132) == splits
