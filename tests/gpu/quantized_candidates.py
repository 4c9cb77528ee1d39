"""Candidates for the tiles of quantized weights, timed in a chain of layers."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from kernel_bench import BF16, CUDA, SHAPES, Model, Shape, angles, decoding, linears, random, seconds

sys.path[:0] = [str(Path(__file__).parents[2])]

from tests.unit.worker.kernels.quantization import random_matrix  # noqa: E402

from plimsoll_worker.kernels import quantized as choosing  # noqa: E402
from plimsoll_worker.kernels import quantized_row, quantized_tiles  # noqa: E402
from plimsoll_worker.kernels.matrix import QuantizedMatrix  # noqa: E402

LLAMA = SHAPES["llama-3.1-8b"]
CHAIN = 6
"""Layers of a chain: more than the L2 cache holds."""
FP8_FROM = 16
"""Rows from which x in FP8 is tried."""
NEVER = 1 << 30
PROGRAMS = (90, 900)
"""Programs that a launch should have, at least and at most, where its inputs are cut."""


def quantized(shape: Shape, kind: str) -> Model:
    """A model with random matrices of a precision."""
    model = Model(dataclasses.replace(shape, layers=0))
    model.shape = shape

    def matrix(outputs: int, inputs: int) -> QuantizedMatrix:
        made = random_matrix(kind, outputs, inputs, BF16, CUDA)
        made.scales.mul_(0.02)
        if made.minimums is not None:
            made.minimums.mul_(0.02)
        return made

    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    model.layers = [
        (
            random(shape.hidden),
            matrix(qkv, shape.hidden),
            matrix(shape.hidden, shape.heads * shape.head_dim),
            random(shape.hidden),
            matrix(2 * shape.inter, shape.hidden),
            matrix(shape.hidden, shape.inter),
        )
        for _ in range(shape.layers)
    ]
    return model


def row_candidates(kind: str, gated: bool) -> list[quantized_row.Tiles]:
    cuts = [(2, 32, 1, 1), (4, 32, 1, 1), (8, 32, 1, 1), (4, 64, 2, 1), (8, 64, 2, 1), (2, 64, 2, 1)]
    cuts += [(4, 128, 4, 1), (8, 128, 4, 1)]
    if kind.startswith("INT4"):
        # Those that are for other widths raise.
        cuts += [(16, 128, 4, 1), (16, 128, 4, 2), (8, 128, 4, 3), (8, 128, 4, 7), (16, 128, 4, 7)]
        cuts += [(8, 512, 16, 2), (8, 512, 16, 4), (4, 512, 16, 8)]
    return [quantized_row.Tiles((n + 1) // 2 if gated else n, *rest) for n, *rest in cuts]


def tile_candidates(kind: str, rows: int, outputs: int) -> list[quantized_tiles.Tiles]:
    """(block_n, block_m, block_k, warps, stages, spans); `outputs` are the weight's rows."""
    int4, fp8 = kind.startswith("INT4"), kind.startswith("FP8")
    if rows <= 16:
        cuts = [
            (64, 16, 128, 4, 4, 1),
            (64, 16, 128, 4, 3, 1),
            (32, 16, 128, 2, 5, 1),
            (128, 16, 128, 8, 4, 1),
        ]
        if int4:
            cuts += [(64, 16, 128, 4, 3, 2), (32, 16, 128, 2, 3, 2), (128, 16, 128, 4, 3, 2)]
        else:
            cuts += [(64, 16, 256, 4, 4, 1), (128, 16, 256, 8, 3, 1)]
    elif rows <= 64:
        band = 64 if rows > 32 else 32
        cuts = [(128, band, 128, 8, 3, 1), (128, band, 128, 8, 4, 1), (64, band, 128, 4, 4, 1)]
        cuts += [(128, band, 128, 8, 3, 2), (128, band, 128, 4, 3, 2)] if int4 else []
    elif rows <= 128:
        cuts = [(128, 128, 128, 8, 3, 1), (128, 128, 64, 8, 4, 1), (64, 128, 128, 4, 3, 1)]
        cuts += [(128, 64, 128, 8, 3, 1)]
    else:
        cuts = [(128, 128, 128, 8, 3, 1), (64, 128, 128, 4, 3, 1), (64, 256, 64, 4, 3, 1)]
        cuts += [] if int4 else [(128, 256, 64, 8, 4, 1), (128, 256, 128, 8, 2, 1)]
    cuts += [(128, 128, 128, 8, 4, 1)] if fp8 and rows > 64 else []
    found = []
    for block_n, block_m, block_k, warps, stages, spans in cuts:
        programs = -(-outputs // block_n) * -(-rows // block_m)
        found += [
            quantized_tiles.Tiles(block_n, block_m, block_k, parts, warps, stages, spans)
            for parts in (1, 2, 3, 4, 6, 8)
            if PROGRAMS[0] <= programs * parts <= PROGRAMS[1]
        ]
    return list(dict.fromkeys(found))


def roles() -> list[tuple[str, int, int, bool]]:
    """(name, inputs, rows of the weight, gated)."""
    return [(name, inputs, outputs * (1 + gated), gated) for name, inputs, outputs, gated in linears(LLAMA)]


def precompile(kinds: tuple[str, ...], rows: list[int]) -> None:
    """Every candidate, on all processors: launched on tensors without memory, then compiled."""
    from plimsoll_worker.kernels import launching, recording

    def random_on_meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=BF16, device="meta")

    with recording.recording(launching.Card.of((9, 0), 132)) as recorded:
        for kind in kinds:
            for _, inputs, height, gated in roles():
                weight = random_matrix(kind, height, inputs, BF16, "meta")
                normed = {"norm_weight": random_on_meta(inputs), "eps": 1e-5}
                for count in rows:
                    x = random_on_meta(count, inputs)
                    narrow, scales = x.to(torch.float8_e4m3fn), torch.empty(count, device="meta")
                    adds = height == LLAMA.hidden
                    end: dict[str, Any] = {"residual": random_on_meta(count, height)} if adds else {}
                    end |= {"gated": "silu"} if gated else {}
                    if count == 1:
                        for cut in row_candidates(kind, gated):
                            with suppress(AssertionError):
                                quantized_row.row_linear(
                                    x, weight, tiles=cut, **({} if adds else normed), **end
                                )
                        continue
                    for cut in tile_candidates(kind, count, height):
                        quantized_tiles.tile_linear(x, weight, tiles=cut, **end)
                        if kind == "FP8" and count >= FP8_FROM:
                            quantized_tiles.tile_linear(narrow, weight, tiles=cut, x_scales=scales, **end)
    kernels = list(recorded.kernels.values())
    print("to compile:", len(kernels), flush=True)
    recording.compile_all(kernels, len(os.sched_getaffinity(0)))


BEST: dict[tuple[str, int], tuple[float, int, dict[tuple[int, int], Any]]] = {}
"""By precision and rows: what a layer took, the rows from which x was FP8, and the tiles by (rows of the
weight, inputs)."""


class Choice:
    """Tiles by (rows of the weight, inputs), in place of the modules' own."""

    def __init__(self, tiles: dict[tuple[int, int], Any]) -> None:
        self.tiles = tiles

    def row(self, weight: QuantizedMatrix, *, gated: bool, multiprocessors: int) -> quantized_row.Tiles:
        return self.tiles[weight.shape]

    def tile(
        self, rows: int, weight: QuantizedMatrix, *, narrow: bool, multiprocessors: int
    ) -> quantized_tiles.Tiles:
        return self.tiles[weight.shape]


@contextmanager
def chosen(tiles: dict[tuple[int, int], Any], fp8_rows: int) -> Iterator[None]:
    """While it lasts, these tiles, and x in FP8 from `fp8_rows` on."""
    kept = quantized_row.tiles_for, quantized_tiles.tiles_for, choosing.FP8_ROWS
    choice = Choice(tiles)
    quantized_row.tiles_for, quantized_tiles.tiles_for, choosing.FP8_ROWS = choice.row, choice.tile, fp8_rows
    try:
        yield
    finally:
        quantized_row.tiles_for, quantized_tiles.tiles_for, choosing.FP8_ROWS = kept


def tuned(kind: str, rows: int) -> dict[str, Any]:
    """Microseconds of a layer by ways of doing it, each with its best tiles."""
    model = quantized(dataclasses.replace(LLAMA, layers=CHAIN, vocab=128), kind)
    batch = decoding(rows)
    caches, turn, x = model.caches(batch), angles(batch, LLAMA.head_dim), random(rows, LLAMA.hidden)
    tiles: dict[tuple[int, int], Any] = {}

    def measure() -> float:
        return seconds([lambda: model.through(x, batch, turn, caches)], repeats=5, least=1e-3) / CHAIN * 1e6

    def best() -> dict[str, Any]:
        lists = {
            (height, inputs): row_candidates(kind, gated)
            if rows == 1
            else tile_candidates(kind, rows, height)
            for _, inputs, height, gated in roles()
        }
        tiles.update({shape: cuts[0] for shape, cuts in lists.items()})
        least, told = measure(), {}
        for shape, cuts in lists.items():
            before, times = tiles[shape], {}
            for cut in cuts:
                tiles[shape] = cut
                try:
                    times[cut] = measure()
                except (RuntimeError, AssertionError) as failure:  # of Triton or CUDA, or not for this width
                    told[f"{shape} {cut}"] = repr(failure)[:200]
            order = sorted(times.items(), key=lambda item: item[1])
            tiles[shape] = order[0][0] if order[0][1] <= least else before
            least = min(least, order[0][1])
            told[str(shape)] = [(*dataclasses.astuple(cut), round(taken, 2)) for cut, taken in order[:6]]
        tried = (least, choosing.FP8_ROWS, dict(tiles))
        BEST[kind, rows] = min(BEST.get((kind, rows), tried), tried, key=lambda one: one[0])
        return {"microseconds a layer": round(least, 2), **told}

    found = {}
    for name, fp8_rows in (("x in 16 bit", NEVER), ("x in FP8", 2)):
        if name == "x in FP8" and (kind != "FP8" or rows < FP8_FROM):
            continue
        with chosen(tiles, fp8_rows):
            found[name] = best()
    return found
