"""Candidates for the kernels' tiles, alone and in a chain of layers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from kernel_bench import SHAPES, Model, Shape, angles, batch_of, decoding, linears, random, seconds
from torch import Tensor

from plimsoll_worker.kernels import decode_attention, few_rows, prefill_attention

COLD_BYTES = 400 << 20
"""Launches go round so many bytes of weights or cache that the L2 holds none of them."""
TUNED = (
    ("llama-3.1-8b", 1),
    ("qwen3-0.6b", 1),
    ("llama-3.1-8b", 4),
    ("llama-3.1-8b", 16),
    ("qwen3-0.6b", 16),
)


@dataclass
class Case:
    """`make(cold)` gives launches over different buffers; `bytes` and `operations` are one launch's."""

    section: str
    name: str
    make: Callable[[bool], list[Callable[[], Any]]]
    bytes: float = 0
    operations: float = 0
    reach: dict[Any, dict[str, Any]] = field(default_factory=dict)
    """Module constants while it runs."""

    def run(self, work: Callable[[], Any]) -> Any:
        before = {
            module: {name: getattr(module, name) for name in names} for module, names in self.reach.items()
        }
        _set(self.reach)
        try:
            return work()
        finally:
            _set(before)


def _set(constants: dict[Any, dict[str, Any]]) -> None:
    for module, names in constants.items():
        for name, value in names.items():
            setattr(module, name, value)


def linear_cases() -> Iterator[Case]:
    for shape_name, shape in SHAPES.items():
        for layer, inputs, outputs, gated in linears(shape):
            for rows in (1, 4, 16, 32, 64, 128):
                yield linear_case(shape_name, layer, rows, inputs, outputs, gated, None)
                if rows <= 16:
                    tiles = few_rows.tiles_for(rows, inputs, outputs, gated=gated)
                    yield linear_case(shape_name, layer, rows, inputs, outputs, gated, tiles)


def linear_case(
    shape: str, layer: str, rows: int, inputs: int, outputs: int, gated: bool, cut: few_rows.Tiles | None
) -> Case:
    """`cut` None is cuBLAS, without norm and activation."""
    height = outputs * (2 if gated else 1)

    def make(cold: bool) -> list[Callable[[], Any]]:
        copies = max(2, -(-COLD_BYTES // (inputs * height * 2))) if cold else 1
        weights = [random(height, inputs, scale=0.02) for _ in range(copies)]
        x, factor, residual = random(rows, inputs), random(inputs), random(rows, outputs)
        if cut is None:
            return [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
        options: dict[str, Any] = {"tiles": cut}
        if layer in ("qkv", "gate-up"):
            options |= {"norm_weight": factor, "eps": 1e-5, "gated": "silu" if gated else None}
        else:
            options |= {"residual": residual}
        return [lambda w=w: few_rows.fused_linear(x, w, **options) for w in weights]

    name = f"{shape} {layer} rows {rows} " + ("cuBLAS" if cut is None else str(dataclasses.astuple(cut)))
    return Case("linear", name, make, bytes=2 * inputs * height)


def candidates(rows: int, gated: bool) -> list[few_rows.Tiles]:
    if rows == 1:
        cuts = (
            ((1, 4096, 8), (2, 1024, 4), (1, 512, 1), (1, 1024, 2), (1, 2048, 4))
            if gated
            else ((4, 2048, 8), (1, 4096, 4), (4, 1024, 4), (2, 2048, 4), (4, 512, 2), (2, 1024, 2))
        )
        return [few_rows.Tiles(*cut) for cut in cuts]
    staged = (
        ((32, 256, 4, 3), (16, 256, 4, 4), (64, 128, 4, 3))
        if gated
        else (
            (16, 256, 4, 4),
            (32, 256, 4, 3),
            (16, 256, 4, 6),
            (16, 256, 2, 4),
            (16, 256, 2, 6),
            (16, 512, 4, 5),
        )
    )
    return [few_rows.Tiles(*cut) for cut in staged]


def tuned(name: str, rows: int) -> dict[str, Any]:
    """The best tiles in a chain of layers: what hides behind the kernel in front is only seen there."""
    shape = dataclasses.replace(SHAPES[name], layers=8 if name.startswith("llama") else 28, vocab=128)
    model, batch = Model(shape), decoding(rows)
    caches, turn = model.caches(batch), angles(batch, shape.head_dim)
    x = random(rows, shape.hidden)
    roles = [(inputs, outputs, gated) for _, inputs, outputs, gated in linears(shape)]
    chosen = {
        (inputs, outputs): few_rows.tiles_for(rows, inputs, outputs, gated=gated)
        for inputs, outputs, gated in roles
    }
    before = few_rows.tiles_for
    few_rows.tiles_for = lambda _rows, inputs, outputs, gated: chosen[inputs, outputs]

    def measure() -> float:
        launch = [lambda: model.through(x, batch, turn, caches)]
        return seconds(launch, repeats=5, least=1e-3) / shape.layers * 1e6

    best = measure()
    found: dict[str, Any] = {"start": best}
    for inputs, outputs, gated in (*roles, *roles[:2]):
        kept, times = chosen[inputs, outputs], {}
        for tiles in candidates(rows, gated):
            chosen[inputs, outputs] = tiles
            times[tiles] = measure()
        order = sorted(times.items(), key=lambda item: item[1])
        chosen[inputs, outputs] = order[0][0] if order[0][1] < best else kept
        best = min(best, order[0][1])
        found[f"{inputs} -> {outputs}"] = [
            (*dataclasses.astuple(tiles), round(time, 2)) for tiles, time in order[:6]
        ]
    if rows <= 4:
        found["head"] = head_times(rows, SHAPES[name])
    if rows == 1:
        before_card = few_rows.card
        plain = lambda device: dataclasses.replace(before_card(device), dependent_launch=False)  # noqa: E731
        few_rows.card = decode_attention.card = plain
        found["without dependent launch"] = measure()
        few_rows.card = decode_attention.card = before_card
    found["chosen"] = {str(role): dataclasses.astuple(tiles) for role, tiles in chosen.items()}
    found["microseconds a layer"] = best
    few_rows.tiles_for = before
    return found


def head_times(rows: int, shape: Shape) -> list[Any]:
    """Microseconds of the norm and the vocabulary's weight."""
    heads = [random(shape.vocab, shape.hidden, scale=0.02) for _ in range(2)]
    x, factor = random(rows, shape.hidden), random(shape.hidden)
    times = []
    for tiles in candidates(rows, gated=False):
        launches = [
            lambda w=w, t=tiles: few_rows.fused_linear(x, w, norm_weight=factor, eps=1e-5, tiles=t)
            for w in heads
        ]
        times.append((round(seconds(launches) * 1e6, 1), *dataclasses.astuple(tiles)))
    launches = [lambda w=w: torch.nn.functional.linear(x, w) for w in heads]
    return [*sorted(times)[:5], (round(seconds(launches) * 1e6, 1), "cuBLAS")]


def decode_cases() -> Iterator[Case]:
    sizes = (
        (1, 129, 16),
        (1, 8192, 16),
        (8, 544, 16),
        (16, 4096, 16),
        (32, 544, 16),
        (128, 544, 16),
        (128, 544, 64),
    )
    tiles = ((64, 4, 3), (32, 4, 3), (64, 4, 5), (32, 4, 5))
    for (sequences, context, page), (block, warps, stages), waves in itertools.product(
        sizes, tiles, (1, 2, 4)
    ):
        if sequences < 128 or waves == 1:
            yield Case(
                "decode attention",
                f"{sequences} x {context} page {page} n{block} w{warps} s{stages} waves {waves}",
                lambda cold, size=(sequences, context, page): _decode(cold, *size),
                bytes=sequences * context * 8 * 128 * 4,
                reach={
                    decode_attention: {"BLOCK_N": block, "WARPS": warps, "STAGES": stages, "WAVES": waves}
                },
            )


def _decode(cold: bool, sequences: int, context: int, page: int) -> list[Callable[[], Any]]:
    shape = SHAPES["llama-3.1-8b"]
    batch = batch_of([1] * sequences, [context] * sequences, page)
    batch = dataclasses.replace(batch, max_context_len=8192)
    size = (batch.block_tables.numel() * page, shape.kv_heads, shape.head_dim)
    copies = min(64, max(2, -(-COLD_BYTES // (size[0] * 4096)))) if cold else 1
    caches = [(random(*size), random(*size)) for _ in range(copies)]
    qkv = random(sequences, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    turn = angles(batch, shape.head_dim)
    heads = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    return [
        lambda k=k, v=v: decode_attention.decode_attention(
            qkv, k, v, batch, **heads, scale=0.088, cos_sin=turn
        )
        for k, v in caches
    ]


def prefill_cases() -> Iterator[Case]:
    shape = SHAPES["llama-3.1-8b"]
    operations = 4 * shape.heads * shape.head_dim * 8192 * 8192 / 2
    backends = torch.nn.attention.SDPBackend
    for name, backend in (("FA2", backends.FLASH_ATTENTION), ("cuDNN", backends.CUDNN_ATTENTION)):
        yield Case("prefill attention", name, lambda cold, b=backend: _prefill(16, b), operations=operations)
    tiles = ((128, 64, 4, 3), (128, 64, 4, 2))
    for page, (m, n, warps, stages) in itertools.product((16, 64), tiles):
        yield Case(
            "prefill attention",
            f"page {page} m{m} n{n} w{warps} s{stages}",
            lambda cold, page=page: _prefill(page, None),
            operations=operations,
            reach={prefill_attention: {"BLOCK_M": m, "BLOCK_N": n, "WARPS": warps, "STAGES": stages}},
        )


def _prefill(page: int, backend: Any) -> list[Callable[[], Any]]:
    shape = SHAPES["llama-3.1-8b"]
    batch = batch_of([8192], [8192], page)
    keys, values = (random(8192, shape.kv_heads, shape.head_dim) for _ in range(2))
    q = random(8192, shape.heads, shape.head_dim)
    if backend is None:
        return [lambda: prefill_attention.prefill_attention(q, keys, values, batch, scale=0.088)]

    def whole() -> Tensor:
        with torch.nn.attention.sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                *(part.transpose(0, 1)[None] for part in (q, keys, values)),
                is_causal=True,
                scale=0.088,
                enable_gqa=True,
            )

    return [whole]


def cases(sections: set[str]) -> list[Case]:
    found = [*linear_cases(), *decode_cases(), *prefill_cases()]
    return [case for case in found if case.section.split()[0] in sections]
