"""The worker's kernels on a real card: are they right, how fast are they, which tiles are best?

`python tests/gpu/kernels_on_gpu.py --out kernels.json` needs one NVIDIA GPU. It compares each kernel with the
reference in FP64 on random inputs, times the candidates for its tiles by replaying CUDA graphs over weights
that do not fit in the L2 cache, and times whole decode steps and a prefill of real shapes with random weights.
The constants in `plimsoll_worker/kernels` come from here. Not part of `make test`, which runs where no GPU is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "worker/src")]

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from plimsoll_worker.kernels import (  # noqa: E402
    decode_attention,
    few_rows,
    launching,
    norm,
    ops,
    prefill_attention,
    reference,
    rope,
    sampling,
)
from plimsoll_worker.kernels.batch import AttentionBatch  # noqa: E402
from torch import Tensor  # noqa: E402

BF16 = torch.bfloat16
COLD_BYTES = 400 << 20
COMPILERS = 14
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CUDA = "cuda"


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qk_norm: bool


SHAPES = {
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151936, True),
}


@dataclass
class Case:
    """`make()` gives launches over different buffers; `bytes` and `operations` are one launch's."""

    section: str
    name: str
    make: Callable[[bool], list[Callable[[], Any]]]
    bytes: float = 0
    operations: float = 0
    reach: dict[Any, dict[str, Any]] = field(default_factory=dict)
    """Module constants while it runs."""


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=CUDA, dtype=BF16).mul_(scale)


def batch_of(new: list[int], context: list[int], page: int) -> AttentionBatch:
    """Sequences with `context` tokens of which `new` are new, in pages at random places."""
    pages = [-(-length // page) for length in context]
    order = torch.randperm(sum(pages)).tolist()
    tables = torch.zeros(len(new), max(pages), dtype=torch.int32)
    positions, slots, starts = [], [], [0]
    for index, (count, length) in enumerate(zip(new, context, strict=True)):
        tables[index, : pages[index]] = torch.tensor([order.pop() for _ in range(pages[index])])
        where = torch.arange(length - count, length)
        positions.append(where)
        slots.append(tables[index, where // page].long() * page + where % page)
        starts.append(starts[-1] + count)
    return AttentionBatch(
        tables.to(CUDA),
        torch.tensor(context, dtype=torch.int32, device=CUDA),
        torch.tensor(starts, dtype=torch.int32, device=CUDA),
        torch.cat(positions).to(CUDA),
        torch.cat(slots).to(CUDA),
        max(new),
        max(context),
        page,
    )


def angles(batch: AttentionBatch, head_dim: int) -> Tensor:
    inverse = 500000.0 ** (-torch.arange(0, head_dim, 2, device=CUDA).float() / head_dim)
    turn = batch.positions.float()[:, None] * inverse
    return torch.stack([turn.cos(), turn.sin()], dim=1)


# --- how fast -------------------------------------------------------------------------------------


def seconds(launches: list[Callable[[], Any]], repeats: int = 7, least: float = 1.5e-3) -> float:
    """Median time of one launch, in CUDA graphs of at least `least` seconds."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for launch in launches[:2]:
            launch()
        stream.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for launch in launches:
            launch()
        end.record()
        stream.synchronize()
        rounds = max(1, min(200 // len(launches), int(least * 1e3 / max(begin.elapsed_time(end), 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for launch in launches:
                    launch()
        times = []
        for index in range(repeats + 2):
            begin.record()
            graph.replay()
            end.record()
            stream.synchronize()
            if index >= 2:
                times.append(begin.elapsed_time(end) / 1e3 / (rounds * len(launches)))
    del graph
    return sorted(times)[len(times) // 2]


@triton.jit
def _read(x, out, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.int32)
    for step in range(STEPS):
        total += tl.load(x + start + step * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


def roofline() -> dict[str, float]:
    buffers = [torch.randint(0, 99, (1 << 29,), dtype=torch.int32, device=CUDA) for _ in range(4)]
    copy = seconds([lambda: buffers[1].copy_(buffers[0]), lambda: buffers[3].copy_(buffers[2])])
    read = 1e9
    for block, steps, warps in ((2048, 64, 4), (2048, 16, 4), (4096, 32, 8), (1024, 64, 4)):
        programs = (1 << 29) // (block * steps)
        out = torch.empty(programs, dtype=torch.int32, device=CUDA)
        run = [
            lambda x=x, p=programs, o=out, b=block, s=steps, w=warps: _read[(p,)](
                x, o, BLOCK=b, STEPS=s, num_warps=w
            )
            for x in buffers[:2]
        ]
        read = min(read, seconds(run))
    del buffers
    left, right = random(8192, 8192), random(8192, 8192)
    matmul = seconds([lambda: left @ right], least=2e-2)
    return {
        "copyTBps": (2 << 31) / copy / 1e12,
        "readTBps": (1 << 31) / read / 1e12,
        "matmulTFLOPps": 2 * 8192**3 / matmul / 1e12,
    }


def linear_cases() -> Iterator[Case]:
    for shape_name, shape in SHAPES.items():
        qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        for layer, inputs, outputs, gated in (
            ("qkv", shape.hidden, qkv, False),
            ("output", shape.heads * shape.head_dim, shape.hidden, False),
            ("gate-up", shape.hidden, 2 * shape.inter, True),
            ("down", shape.inter, shape.hidden, False),
        ):
            for rows in (1, 4, 16, 32, 64):
                tiles: list[few_rows.Tiles | None] = [None]
                if rows == 1:
                    cuts = (
                        ((2, 1024, 4), (1, 512, 1), (2, 512, 2), (2, 256, 1))
                        if gated
                        else ((4, 1024, 4), (2, 512, 1), (4, 512, 2), (4, 256, 1), (1, 512, 1))
                    )
                    tiles += [few_rows.Tiles(*cut, 1, ahead) for cut in cuts for ahead in (False, True)]
                elif rows in (16, 64) or shape_name == "llama-3.1-8b":
                    cuts = (
                        (16, 256, 4, 4),
                        (32, 128, 4, 4),
                        (32, 256, 4, 3),
                        (64, 128, 4, 4),
                        (64, 64, 4, 5),
                    )
                    tiles += [few_rows.Tiles(*cut, prefetch=False) for cut in cuts]
                for cut in tiles:
                    yield linear_case(shape_name, layer, rows, inputs, outputs, gated, cut)


def linear_case(
    shape: str, layer: str, rows: int, inputs: int, outputs: int, gated: bool, cut: few_rows.Tiles | None
) -> Case:
    """`cut` None is cuBLAS, without norm and activation."""

    def make(cold: bool) -> list[Callable[[], Any]]:
        copies = max(2, -(-COLD_BYTES // (inputs * outputs * 2))) if cold else 1
        weights = [random(outputs, inputs, scale=0.02) for _ in range(copies)]
        x, factor = random(rows, inputs), random(inputs)
        residual = random(rows, outputs)
        if cut is None:
            return [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
        options: dict[str, Any] = {"tiles": cut}
        if layer in ("qkv", "gate-up"):
            options |= {"norm_weight": factor, "eps": 1e-5, "gated": "silu" if gated else None}
        else:
            options |= {"residual": residual}
        return [lambda w=w: few_rows.fused_linear(x, w, **options) for w in weights]

    name = f"{shape} {layer} rows {rows} " + (
        "cuBLAS"
        if cut is None
        else f"{cut.block_n}x{cut.block_k} w{cut.warps} s{cut.stages} p{cut.prefetch:d}"
    )
    return Case("linear", name, make, bytes=2 * inputs * outputs)


def decode_cases() -> Iterator[Case]:
    shape = SHAPES["llama-3.1-8b"]
    for sequences, context, page in (
        (1, 129, 16),
        (1, 8192, 16),
        (32, 544, 16),
        (128, 544, 16),
        (128, 544, 64),
    ):
        for block, warps, stages in (
            (64, 4, 3),
            (64, 4, 4),
            (32, 4, 4),
            (128, 4, 3),
            (128, 8, 3),
            (32, 2, 4),
        ):

            def make(
                cold: bool, sequences: int = sequences, context: int = context, page: int = page
            ) -> list[Callable[[], Any]]:
                batch = batch_of([1] * sequences, [context] * sequences, page)
                size = batch.block_tables.numel() * page * shape.kv_heads * shape.head_dim
                copies = max(2, -(-COLD_BYTES // (size * 4))) if cold else 1
                caches = [
                    (
                        random(size).view(-1, shape.kv_heads, shape.head_dim),
                        random(size).view(-1, shape.kv_heads, shape.head_dim),
                    )
                    for _ in range(min(copies, 64))
                ]
                qkv = random(sequences, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
                turn = angles(batch, shape.head_dim)
                return [
                    lambda k=k, v=v: decode_attention.decode_attention(
                        qkv, k, v, batch, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
                        scale=0.088, cos_sin=turn,
                    )
                    for k, v in caches
                ]  # fmt: skip

            yield Case(
                "decode attention",
                f"{sequences} x {context} page {page} n{block} w{warps} s{stages}",
                make,
                bytes=sequences * context * shape.kv_heads * shape.head_dim * 4,
                reach={decode_attention: {"BLOCK_N": block, "WARPS": warps, "STAGES": stages}},
            )


def prefill_cases() -> Iterator[Case]:
    shape = SHAPES["llama-3.1-8b"]
    tokens = 8192
    operations = 4 * shape.heads * shape.head_dim * tokens * tokens / 2

    def make(cold: bool, page: int, backend: Any = None) -> list[Callable[[], Any]]:
        batch = batch_of([tokens], [tokens], page)
        keys, values = (random(tokens, shape.kv_heads, shape.head_dim) for _ in range(2))
        q = random(tokens, shape.heads, shape.head_dim)
        if backend is None:
            return [lambda: prefill_attention.prefill_attention(q, keys, values, batch, scale=0.088)]

        def whole() -> Tensor:
            with torch.nn.attention.sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q.transpose(0, 1)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None],
                    is_causal=True, scale=0.088, enable_gqa=True,
                )  # fmt: skip

        return [whole]

    backends = torch.nn.attention.SDPBackend
    for name, backend in (("FA2", backends.FLASH_ATTENTION), ("cuDNN", backends.CUDNN_ATTENTION)):
        yield Case(
            "prefill attention", name, lambda cold, b=backend: make(cold, 16, b), operations=operations
        )
    for page, (m, n, warps, stages) in itertools.product(
        (16, 64),
        (
            (128, 64, 8, 3),
            (128, 64, 4, 3),
            (128, 128, 8, 2),
            (128, 128, 8, 3),
            (64, 64, 4, 3),
            (128, 64, 8, 4),
        ),
    ):
        yield Case(
            "prefill attention",
            f"page {page} m{m} n{n} w{warps} s{stages}",
            lambda cold, p=page: make(cold, p),
            operations=operations,
            reach={prefill_attention: {"BLOCK_M": m, "BLOCK_N": n, "WARPS": warps, "STAGES": stages}},
        )


# --- whole steps ----------------------------------------------------------------------------------


class Model:
    """Random weights of a shape, and a step over them by `ops`."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.layers = [
            (
                random(shape.hidden),
                random(qkv, shape.hidden, scale=0.02),
                random(shape.hidden, shape.heads * shape.head_dim, scale=0.02),
                random(shape.hidden),
                random(2 * shape.inter, shape.hidden, scale=0.02),
                random(shape.hidden, shape.inter, scale=0.02),
            )
            for _ in range(shape.layers)
        ]
        self.head = random(shape.vocab, shape.hidden, scale=0.02)
        self.norm = random(shape.hidden)
        self.qk_norm = random(shape.head_dim) if shape.qk_norm else None
        self.bytes = 2 * (sum(w.numel() for layer in self.layers for w in layer) + self.head.numel())

    def caches(self, batch: AttentionBatch) -> list[tuple[Tensor, Tensor]]:
        size = (batch.block_tables.numel() * batch.block_size, self.shape.kv_heads, self.shape.head_dim)
        return [(random(*size), random(*size)) for _ in self.layers]

    def step(self, tokens: Tensor, batch: AttentionBatch, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        shape = self.shape
        turn = angles(batch, shape.head_dim)
        x = torch.nn.functional.embedding(tokens, self.head)
        for (norm_in, qkv, output, norm_out, gate_up, down), (keys, values) in zip(
            self.layers, caches, strict=True
        ):
            attended = ops.rope_attention(
                ops.norm_linear(x, norm_in, 1e-5, qkv), batch, turn, keys, values, heads=shape.heads,
                kv_heads=shape.kv_heads, head_dim=shape.head_dim, scale=shape.head_dim**-0.5,
                q_norm=self.qk_norm, k_norm=self.qk_norm,
            )  # fmt: skip
            x = ops.linear_add(attended, output, x)
            x = ops.linear_add(ops.norm_gate_up(x, norm_out, 1e-5, gate_up, "silu"), down, x)
        rows = x[batch.query_start[1:].long() - 1]
        logits = ops.norm_linear(rows, self.norm, 1e-5, self.head)
        zeros = torch.zeros(rows.shape[0], device=CUDA)
        return ops.sample(logits, zeros, zeros.long(), zeros.long())


def context_of(rows: int) -> int:
    return 129 if rows == 1 else 544


def steps(results: dict[str, Any], bandwidth: float) -> None:
    for name, shape in SHAPES.items():
        model = Model(shape)
        for rows in ROWS:
            context = context_of(rows)
            batch = batch_of([1] * rows, [context] * rows, 16)
            caches = model.caches(batch)
            tokens = torch.randint(0, shape.vocab, (rows,), device=CUDA)
            kv = rows * context * shape.layers * shape.kv_heads * shape.head_dim * 4
            floor = (model.bytes + kv) / bandwidth
            for few in (0, 64) if 1 < rows <= 64 else ((64,) if rows == 1 else (0,)):
                ops.FEW_ROWS = few
                time = seconds([lambda b=batch, c=caches, t=tokens: model.step(t, b, c)], least=1e-4)
                results[f"{name} {rows} x {context} {'fused' if few else 'cuBLAS'}"] = {
                    "milliseconds": time * 1e3,
                    "tokensPerSecond": rows / time,
                    "ofReadBandwidth": floor / time,
                }
        ops.FEW_ROWS = 16
        batch = batch_of([8192], [8192], 16)
        caches = model.caches(batch)
        tokens = torch.randint(0, shape.vocab, (8192,), device=CUDA)
        time = seconds([lambda b=batch, c=caches, t=tokens: model.step(t, b, c)], least=1e-4)
        results[f"{name} prefill 8192"] = {"milliseconds": time * 1e3}
        del model, caches


# --- right or wrong ---------------------------------------------------------------------------------


def error(out: Tensor, wanted: Tensor) -> float:
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())


def wide(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def check_norms() -> dict[str, float]:
    errors: dict[str, float] = {}
    x, residual, weight = random(7, 4096), random(7, 4096), random(4096)
    wanted = reference.rms_norm(wide(x), wide(weight), 1e-5)
    errors["rms_norm"] = error(norm.rms_norm(x, weight, 1e-5), wanted)
    normed, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    errors["add_rms_norm"] = error(normed, reference.rms_norm(wide(x) + wide(residual), wide(weight), 1e-5))
    errors["add_rms_norm total"] = error(total, wide(x) + wide(residual))
    for kind in ("silu", "gelu_tanh"):
        errors[kind] = error(norm.gated_activation(x, kind), reference.gated_activation(wide(x), kind))
    return errors


def check_linear(rows: int, inputs: int, outputs: int) -> dict[str, float]:
    x, weight, bias = random(rows, inputs), random(outputs, inputs, scale=0.02), random(outputs)
    factor, residual = random(inputs), random(rows, outputs)
    plain = reference.linear(reference.rms_norm(wide(x), wide(factor), 1e-5), wide(weight), wide(bias))
    linear = few_rows.fused_linear(x, weight, bias, norm_weight=factor, eps=1e-5)
    gated = few_rows.fused_linear(x, weight, bias, norm_weight=factor, eps=1e-5, gated="silu")
    wanted = wide(residual) + 0.5 * reference.linear(wide(x), wide(weight))
    added = few_rows.fused_linear(x, weight, residual=residual, scale=0.5)
    label = f"{rows} rows {inputs}x{outputs}"
    return {
        f"linear {label}": error(linear, plain),
        f"gated {label}": error(gated, reference.gated_activation(plain, "silu")),
        f"residual {label}": error(added, wanted),
    }


def check_attention(
    heads: int, kv_heads: int, dim: int, window: int | None, cap: float | None, page: int, fp8: bool
) -> dict[str, float]:
    errors: dict[str, float] = {}
    label = f"{heads}/{kv_heads} x {dim} window {window} cap {cap} page {page} fp8 {fp8}"
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "eps": 1e-6}
    looks = {"scale": dim**-0.5, "window": window, "softcap": cap}
    for new, context in (([1, 1, 1, 1, 1], [1, 129, 700, 3000, 64]), ([300, 1, 77, 1], [300, 900, 1000, 5])):
        batch = batch_of(new, context, page)
        slots = batch.block_tables.numel() * page
        kept = torch.float8_e4m3fn if fp8 else BF16
        keys, values = (random(slots, kv_heads, dim).to(kept) for _ in range(2))
        qkv, factor, turn = random(sum(new), (heads + 2 * kv_heads) * dim), random(dim), angles(batch, dim)
        wanted_k, wanted_v = keys.double(), values.double()
        q = reference.rope_store(
            wide(qkv),
            batch,
            wide(turn),
            wanted_k,
            wanted_v,
            **shape,
            q_norm=wide(factor),
            k_norm=wide(factor),
        )
        if fp8:
            wanted_k, wanted_v = (
                cache.float().clamp(-448, 448).to(kept).double() for cache in (wanted_k, wanted_v)
            )
        wanted = reference.attention(q, wanted_k, wanted_v, batch, **looks)
        out = ops.rope_attention(
            qkv, batch, turn, keys, values, **shape, **looks, q_norm=factor, k_norm=factor
        )
        kind = "decode" if max(new) == 1 else "prefill"
        errors[f"{kind} {label}"] = error(out.view_as(wanted), wanted)
        errors[f"{kind} keys {label}"] = error(keys.float(), wanted_k)
    return errors


def check_sampling() -> dict[str, float]:
    logits = torch.randn(37, 151936, device=CUDA)
    heat = torch.rand(37, device=CUDA) * 2 * (torch.arange(37, device=CUDA) % 3 > 0)
    seeds = torch.randint(-(2**62), 2**62, (37,), device=CUDA)
    places = torch.randint(0, 9999, (37,), device=CUDA)
    same = sampling.sample(logits, heat, seeds, places) == reference.sample(logits, heat, seeds, places)
    prompt = (torch.rand(40, 151936, device=CUDA) < 0.1).to(torch.uint8)
    counts = torch.randint(0, 3, (40, 151936), dtype=torch.int32, device=CUDA)
    knobs = [torch.rand(37, device=CUDA) + 0.5, torch.rand(37, device=CUDA), torch.rand(37, device=CUDA)]
    mine, wanted = logits.clone(), logits.double()
    slots = torch.arange(37, device=CUDA) + 2
    sampling.penalize(mine, slots, prompt, counts, *knobs)
    reference.penalize(wanted, slots, prompt, counts, *knobs)
    return {"share of other tokens": 1 - float(same.float().mean()), "penalize": error(mine, wanted)}


def checks() -> list[Callable[[], dict[str, float]]]:
    """Each gives ‖out − reference‖ / ‖reference‖, kernels in BF16 and the reference in FP64."""
    linears = itertools.product((1, 5, 16, 64), ((4096, 6144), (576, 1536)))
    attentions = (
        (32, 8, 128, None, None, 16, False),
        (9, 3, 64, None, None, 16, False),
        (28, 4, 128, 100, None, 64, False),
        (8, 4, 256, 512, 50.0, 16, False),
        (16, 16, 96, None, None, 128, False),
        (32, 8, 128, None, None, 16, True),
    )
    return [
        check_norms,
        check_sampling,
        *(functools.partial(check_linear, rows, *size) for rows, size in linears),
        *(functools.partial(check_attention, *shape) for shape in attentions),
    ]


# --- the run ----------------------------------------------------------------------------------------


def cases(sections: set[str]) -> list[Case]:
    found = [*linear_cases(), *decode_cases(), *prefill_cases()]
    return [case for case in found if case.section.split()[0] in sections]


def with_constants(case: Case, work: Callable[[], float | None]) -> float | None:
    before = {module: {name: getattr(module, name) for name in names} for module, names in case.reach.items()}
    try:
        for module, names in case.reach.items():
            for name, value in names.items():
                setattr(module, name, value)
        return work()
    finally:
        for module, names in before.items():
            for name, value in names.items():
                setattr(module, name, value)


def compile_part(part: int, sections: set[str]) -> None:
    """Launch every COMPILERS-th kernel once: the compiled ones stay in Triton's cache. A check that fails
    here fails again, and is told, in the main process."""
    work: list[Callable[[], Any]] = list(checks()) if "check" in sections else []
    for case in cases(sections):
        if "cuBLAS" not in case.name and case.name not in ("FA2", "cuDNN"):
            work.append(lambda case=case: with_constants(case, lambda: case.make(False)[0]() and None))
    if "step" in sections:
        for (name, shape), rows in itertools.product(SHAPES.items(), (*ROWS, 8192)):
            work.append(lambda shape=shape, rows=rows: compile_step(shape, rows))
    for one in work[part::COMPILERS]:
        try:
            one()
            torch.cuda.synchronize()
        except Exception:
            print("compiling:", traceback.format_exc(limit=-2), flush=True)
            if "CUDA error" in traceback.format_exc():
                return


def compile_step(shape: Shape, rows: int) -> None:
    model = Model(dataclasses.replace(shape, layers=1))
    batch = (
        batch_of([8192], [8192], 16) if rows == 8192 else batch_of([1] * rows, [context_of(rows)] * rows, 16)
    )
    tokens = torch.zeros(rows, dtype=torch.int64, device=CUDA)
    for few in (0, 64):
        ops.FEW_ROWS = few
        model.step(tokens, batch, model.caches(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="*", default=["check", "linear", "decode", "prefill", "step"])
    parser.add_argument("--compile", type=int)
    arguments = parser.parse_args()
    sections = set(arguments.sections)
    if arguments.compile is not None:
        compile_part(arguments.compile, sections)
        return
    torch.manual_seed(0)
    compilers = [
        subprocess.Popen([sys.executable, *sys.argv, "--compile", str(part)], env=os.environ)
        for part in range(COMPILERS)
    ]
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}

    def note(section: str, work: Callable[[], Any]) -> Any:
        try:
            results[section] = work()
        except Exception:
            results[section] = traceback.format_exc()
            print(section, results[section], flush=True)
        arguments.out.write_text(json.dumps(results, indent=1))
        return results[section]

    for compiler in compilers:
        compiler.wait()
    print("compiled", flush=True)
    if "check" in sections:
        errors = note("check", lambda: {name: value for one in checks() for name, value in one().items()})
        if isinstance(errors, dict):
            for name, value in sorted(errors.items(), key=lambda item: -item[1])[:14]:
                print(f"error {value:.1e}  {name}", flush=True)
    roof = note("roofline", roofline)
    print(roof, flush=True)
    bandwidth = roof["readTBps"] * 1e12
    for case in cases(sections):
        try:
            time = with_constants(case, lambda case=case: seconds(case.make(True)))
        except Exception as failure:
            print("failed:", case.name, repr(failure)[:300], flush=True)
            continue
        entry = {"microseconds": time * 1e6}
        if case.bytes:
            entry["ofReadBandwidth"] = case.bytes / time / bandwidth
        if case.operations:
            entry["TFLOPps"] = case.operations / time / 1e12
        results.setdefault(case.section, {})[case.name] = entry
    arguments.out.write_text(json.dumps(results, indent=1))
    if "step" in sections:
        whole: dict[str, Any] = {}
        note("step", lambda: steps(whole, bandwidth) or whole)
        plain = launching.Card(launching.card(torch.device("cuda", 0)).multiprocessors, False)
        if "pdl" in sections:
            for module in (decode_attention, few_rows, norm, prefill_attention, rope, sampling):
                module.card = lambda _device: plain
            other: dict[str, Any] = {}
            note("step without dependent launch", lambda: steps(other, bandwidth) or other)
    report(results)


def report(results: dict[str, Any]) -> None:
    """The best candidates of each kind, then the steps."""
    for section in ("linear", "decode attention", "prefill attention"):
        groups: dict[str, list[tuple[float, str]]] = {}
        for name, entry in results.get(section, {}).items():
            words = name.split()
            key = " ".join(
                words[:4] if section == "linear" else words[:5] if section == "decode attention" else ["8192"]
            )
            groups.setdefault(key, []).append(
                (entry["microseconds"], name[len(key) :] if key in name else name)
            )
        for key, entries in groups.items():
            best = "; ".join(f"{time:.1f}{name}" for time, name in sorted(entries)[:4])
            print(
                f"{section}: {key}: {best}; cuBLAS " + str([round(t, 1) for t, n in entries if "cuBLAS" in n])
            )
    for section in ("step", "step without dependent launch"):
        if isinstance(results.get(section), dict):
            for name, entry in results[section].items():
                print(section, name, {key: round(value, 3) for key, value in entry.items()})


if __name__ == "__main__":
    main()
