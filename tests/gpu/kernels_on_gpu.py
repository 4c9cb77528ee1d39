"""The worker's kernels on a real card: are they right, how fast are they, which tiles are best?

`python tests/gpu/kernels_on_gpu.py --out kernels.json` needs one NVIDIA GPU. It compares each kernel with the
reference in FP64 on random inputs, times candidates for its tiles by replaying CUDA graphs over weights that
do not fit in the L2 cache, and times whole decode steps and a prefill of real shapes with random weights. The
constants in `plimsoll_worker/kernels` come from here. Not part of `make test`, which runs where no GPU is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernel_bench import CUDA, SHAPES, Model, Shape, batch_of, decoding, linears, random, roofline, seconds
from kernel_checks import checks
from kernel_tiles import TUNED, candidates, cases, linear_case, tuned

from plimsoll_worker.kernels import (
    decode_attention,
    few_rows,
    launching,
    norm,
    prefill_attention,
    rope,
    sampling,
)
from plimsoll_worker.kernels.batch import AttentionBatch

COMPILERS = 14
"""Processes that compile at a time, before anything is measured."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECTIONS = ["check", "linear", "decode", "prefill", "step"]


def steps(bandwidth: float, counts: tuple[int, ...]) -> dict[str, Any]:
    """Whole decode steps, from token ids to token ids, and a prefill of 8192 tokens."""
    results: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        model = Model(shape)
        for rows in counts:
            batch = decoding(rows)
            cached = int(batch.context_lens.sum()) * shape.layers * shape.kv_heads * shape.head_dim * 4
            taken = step_seconds(model, batch)
            results[f"{name} {rows}"] = {
                "milliseconds": round(taken * 1e3, 4),
                "tokensPerSecond": round(rows / taken, 1),
                "ofReadBandwidth": round((model.bytes + cached) / bandwidth / taken, 3),
            }
        if counts == ROWS:
            results[f"{name} prefill 8192"] = {
                "milliseconds": step_seconds(model, batch_of([8192], [8192], 16)) * 1e3,
                "linears alone": prefill_linears(model) * 1e3,
            }
    return results


def fp8_cache() -> dict[str, float]:
    """Milliseconds of a decode step of 256 sequences with 1024 tokens each, by what keys and values are kept
    in and how many tokens a page holds."""
    model, found = Model(SHAPES["llama-3.1-8b"]), {}
    for page, kept in itertools.product((16, 64), (torch.bfloat16, torch.float8_e4m3fn)):
        batch = dataclasses.replace(batch_of([1] * 256, [1024] * 256, page), max_context_len=8192)
        found[f"page {page} {kept}"] = step_seconds(model, batch, kept) * 1e3
    return found


def step_seconds(model: Model, batch: AttentionBatch, kept: torch.dtype = torch.bfloat16) -> float:
    caches = model.caches(batch, kept)
    tokens = torch.randint(0, model.shape.vocab, batch.positions.shape, device=CUDA)
    return seconds([lambda: model.step(tokens, batch, caches)], least=1e-4)


def prefill_linears(model: Model) -> float:
    inputs = {inputs: random(8192, inputs) for _, inputs, _, _ in linears(model.shape)}

    def all_layers() -> None:
        for layer in model.layers:
            for weight in layer:
                if weight.dim() == 2:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return seconds([all_layers], least=1e-4)


def cudnn_first_calls() -> dict[str, float]:
    """Milliseconds until cuDNN attention answers for a length it has not seen, and again."""
    found: dict[str, float] = {}
    for length in (1024, 1536, 2048, 1024):
        q, k, v = (random(1, heads, length, 128) for heads in (32, 8, 8))
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        torch.cuda.synchronize()
        found[f"{length}{' again' if str(length) in found else ''}"] = (time.perf_counter() - began) * 1e3
    return found


def compile_part(part: int, sections: set[str]) -> None:
    """Launch every COMPILERS-th kernel once: the compiled ones stay in Triton's cache. What fails here fails
    again, and is told, in the main process."""
    work: list[Callable[[], Any]] = list(checks()) if "check" in sections else []
    work += [
        functools.partial(case.run, lambda case=case: [one() for one in case.make(False)])
        for case in cases(sections)
        if case.name.split()[-1] not in ("cuBLAS", "FA2", "cuDNN")
    ]
    if "step" in sections:
        work += [
            functools.partial(compile_step, *one) for one in itertools.product(SHAPES.values(), (*ROWS, 8192))
        ]
    if "tune" in sections:
        for name, rows in TUNED:
            for layer, inputs, outputs, gated in linears(SHAPES[name]):
                for tiles in candidates(rows, gated):
                    case = linear_case(name, layer, rows, inputs, outputs, gated, tiles)
                    work.append(lambda case=case: case.make(False)[0]())
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
    batch = batch_of([8192], [8192], 16) if rows == 8192 else decoding(rows)
    model.step(torch.zeros(rows, dtype=torch.int64, device=CUDA), batch, model.caches(batch))


class Notebook:
    """Results by section, written after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.began = time.perf_counter()
        self.results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}

    def note(self, section: str, work: Callable[[], Any]) -> Any:
        try:
            self.results[section] = work()
        except Exception:
            self.results[section] = traceback.format_exc()
            print(section, self.results[section], flush=True)
        self.file.write_text(json.dumps(self.results, indent=1))
        print(f"{time.perf_counter() - self.began:.0f} s: {section}", flush=True)
        return self.results[section]


def timed(sections: set[str], bandwidth: float) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for case in cases(sections):
        try:
            taken = case.run(lambda case=case: seconds(case.make(True)))
        except Exception as failure:
            print("failed:", case.name, repr(failure)[:300], flush=True)
            continue
        entry = {"microseconds": taken * 1e6}
        if case.bytes:
            entry["ofReadBandwidth"] = case.bytes / taken / bandwidth
        if case.operations:
            entry["TFLOPps"] = case.operations / taken / 1e12
        results.setdefault(case.section, {})[case.name] = entry
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--sections", nargs="*", default=SECTIONS, choices=[*SECTIONS, "cache", "tune", "pdl"]
    )
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sections = set(arguments.sections)
    if arguments.compile is not None:
        compile_part(arguments.compile, sections)
        return
    torch.manual_seed(0)
    book = Notebook(arguments.out)
    command = [sys.executable, *sys.argv, "--compile"]
    for compiler in [subprocess.Popen([*command, str(part)]) for part in range(COMPILERS)]:
        compiler.wait()
    if "check" in sections:
        book.note("check", lambda: {name: value for one in checks() for name, value in one().items()})
    bandwidth = book.note("roofline", roofline)["readTBps"] * 1e12
    book.note("candidates", lambda: timed(sections, bandwidth))
    if "prefill" in sections:
        book.note("cuDNN first calls", cudnn_first_calls)
    if "tune" in sections:
        for name, rows in TUNED:
            book.note(f"tune {name} {rows}", functools.partial(tuned, name, rows))
    if "step" in sections:
        book.note("step", lambda: steps(bandwidth, ROWS))
    if "cache" in sections:
        book.note("step by cache", fp8_cache)
    if "pdl" in sections:
        plain = launching.Card(
            launching.card(torch.device("cuda", 0)).multiprocessors, dependent_launch=False
        )
        for module in (decode_attention, few_rows, norm, prefill_attention, rope, sampling):
            module.card = lambda _device: plain
        book.note("step without dependent launch", lambda: steps(bandwidth, (1,)))
    report(book.results)


def report(results: dict[str, Any]) -> None:
    """The best candidates of each kind, then the steps."""
    print(results["gpu"], results["roofline"])
    for name, value in sorted(results.get("check", {}).items(), key=lambda item: -item[1])[:6]:
        print(f"error {value:.1e}  {name}")
    for section, words in (("linear", 4), ("decode attention", 5), ("prefill attention", 0)):
        groups: dict[str, list[tuple[float, str]]] = {}
        for name, entry in results["candidates"].get(section, {}).items():
            parts = name.split()
            group = groups.setdefault(" ".join(parts[:words]), [])
            group.append((entry["microseconds"], " ".join(parts[words:])))
        for key, entries in groups.items():
            best = "; ".join(f"{taken:.1f} {name}" for taken, name in sorted(entries)[:5])
            print(f"{section} {key}: {best}")
    for section, entries in results.items():
        if section.startswith(("step", "tune", "cuDNN")):
            for name, entry in entries.items():
                print(section, name, entry)


if __name__ == "__main__":
    main()
