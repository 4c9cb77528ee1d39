"""The kernels for quantized weights on a real card: are they right, how fast are they beside 16 bit, which
tiles are best?

`python tests/gpu/quantized_on_gpu.py --out quantized.json` needs one NVIDIA GPU of compute capability 9.0. It
compares each kernel with FP64 on random inputs, times whole decode steps and a prefill of Llama-3.1-8B's
shape, and the experts of a layer of Qwen3-30B-A3B's, with random weights in every precision, and with
`--sections tune` candidates for the tiles in chains of layers. The tiles in
`plimsoll_worker/kernels/quantized_*.py` come from here. Not part of `make test`.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kernel_bench import BF16, CUDA, Model, batch_of, decoding, random, roofline, seconds
from quantized_candidates import BEST, LLAMA, NEVER, choosing, chosen, precompile, quantized, tuned
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2])]

from expert_checks import check_cases, check_experts, expert_times  # noqa: E402
from tests.unit.worker.kernels.quantization import KINDS, random_matrix  # noqa: E402

from plimsoll_worker.kernels import ops, reference  # noqa: E402
from plimsoll_worker.kernels.matrix import dequantize  # noqa: E402

PRECISIONS = ("INT8", "INT4 group 128", "FP8")
ROWS = (1, 4, 16, 32, 64, 128, 256)
PROMPT = 8192
TUNED_ROWS = (1, 4, 16, 64, 128, 256)
SECTIONS = ["check", "step", "experts"]
CHECKERS = 14
"""Processes that check side by side."""


def error(out: Tensor, wanted: Tensor) -> float:
    return float((out.double() - wanted).norm() / wanted.norm())


def check_linear(kind: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, float]:
    """‖out - FP64‖ / ‖FP64‖ of the three forms that a layer has."""
    x, bias = random(rows, inputs).to(dtype), random(outputs).to(dtype)
    factor, residual = random(inputs).to(dtype), random(rows, outputs).to(dtype)
    weight = random_matrix(kind, outputs, inputs, dtype, CUDA)
    weight.scales.mul_(inputs**-0.5)
    if weight.minimums is not None:
        weight.minimums.mul_(inputs**-0.5)
    wide = dequantize(weight, torch.float64)
    normed = reference.rms_norm(x.double(), factor.double(), 1e-5)
    plain = reference.linear(normed, wide, bias.double())
    added = residual.double() + 0.5 * reference.linear(x.double(), wide)
    label = f"{kind} {rows} rows {inputs}x{outputs} {str(dtype)[6:]}"
    found = {
        f"linear {label}": error(ops.norm_linear(x, factor, 1e-5, weight, bias), plain),
        f"gated {label}": error(
            ops.norm_gate_up(x, factor, 1e-5, weight, "silu", bias), reference.gated_activation(plain, "silu")
        ),
        f"residual {label}": error(ops.linear_add(x, weight, residual, scale=0.5), added),
    }
    torch.cuda.synchronize()
    return found


def checks() -> list[Callable[[], dict[str, float]]]:
    small, large = (576, 1536), (4096, 6144)
    cases = [(kind, rows, *small, BF16) for kind in KINDS for rows in (1, 5, 48, 200, 500)]
    cases += [(kind, rows, *large, BF16) for kind in PRECISIONS for rows in (1, 16, 128)]
    cases += [(kind, rows, *small, torch.float16) for kind in PRECISIONS for rows in (1, 5, 200)]
    of_experts = [functools.partial(check_experts, *case) for case in check_cases()]
    return [*(functools.partial(check_linear, *case) for case in cases), *of_experts]


def check(part: int) -> dict[str, float]:
    """Every CHECKERS-th of the checks: most of their time is compilation."""
    torch.manual_seed(part)
    found: dict[str, float] = {}
    for one in checks()[part::CHECKERS]:
        try:
            found |= one()
        except RuntimeError as failure:
            found[f"{one.args} {failure!r}"[:600]] = float("inf")
    return found


def check_all() -> dict[str, float]:
    with ProcessPoolExecutor(CHECKERS, mp_context=get_context("spawn")) as pool:
        errors = {name: value for part in pool.map(check, range(CHECKERS)) for name, value in part.items()}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def step_seconds(model: Model, rows: int) -> float:
    batch = batch_of([PROMPT], [PROMPT], 16) if rows == PROMPT else decoding(rows)
    caches = model.caches(batch)
    tokens = torch.randint(0, model.shape.vocab, batch.positions.shape, device=CUDA)
    return seconds([lambda: model.step(tokens, batch, caches)], least=1e-4)


def steps() -> dict[str, Any]:
    """Milliseconds of whole steps, from token ids to token ids, and how many times faster than 16 bit. With
    the tiles that were just found best, if any were tuned."""
    found: dict[str, Any] = {}
    for kind in ("BF16", *PRECISIONS):
        model = Model(LLAMA) if kind == "BF16" else quantized(LLAMA, kind)
        found[kind] = {}
        for rows in (*ROWS, PROMPT):
            with chosen(*BEST[kind, rows][:0:-1]) if (kind, rows) in BEST else nullcontext():
                found[kind][rows] = round(step_seconds(model, rows) * 1e3, 4)
        if kind == "INT8" and (kind, 256) in BEST:
            found["512 rows"] = {}
            limit_before = choosing.WIDE_ROWS
            for name, limit in (("wide", 0), ("tiles", NEVER)):
                choosing.WIDE_ROWS = limit
                with chosen(*BEST[kind, 256][:0:-1]):
                    found["512 rows"][name] = round(step_seconds(model, 512) * 1e3, 4)
            choosing.WIDE_ROWS = limit_before
        del model
        torch.cuda.empty_cache()
    found["ratios"] = {
        kind: {rows: round(found["BF16"][rows] / taken, 3) for rows, taken in found[kind].items()}
        for kind in PRECISIONS
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="*", default=SECTIONS, choices=[*SECTIONS, "tune"])
    parser.add_argument("--rows", nargs="*", type=int, default=list(TUNED_ROWS), help="to tune for")
    parser.add_argument("--precompile", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.precompile:
        precompile(PRECISIONS, arguments.rows)
        return
    torch.manual_seed(0)
    began = time.perf_counter()
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}

    def note(section: str, work: Callable[[], Any]) -> None:
        results[section] = work()
        arguments.out.write_text(json.dumps(results, indent=1))
        print(f"{time.perf_counter() - began:.0f} s: {section} {results[section]}", flush=True)

    if "check" in arguments.sections:
        note("check", check_all)
    if "tune" in arguments.sections:
        subprocess.run([sys.executable, *sys.argv, "--precompile"], check=True)
        print(f"{time.perf_counter() - began:.0f} s: compiled", flush=True)
        for rows in arguments.rows:
            for kind in PRECISIONS:
                note(f"tune {kind} {rows}", functools.partial(tuned, kind, rows))
    if "step" in arguments.sections:
        note("roofline", roofline)
        note("step", steps)
    if "experts" in arguments.sections:
        note("experts", functools.partial(expert_times, PRECISIONS))


if __name__ == "__main__":
    main()
