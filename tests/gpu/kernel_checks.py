"""Each kernel in BF16 on the card against the reference in FP64, on random inputs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from kernel_bench import BF16, CUDA, angles, batch_of, random
from torch import Tensor

from plimsoll_worker.kernels import few_rows, norm, ops, reference, sampling


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
    for new, context in (
        ([1, 1, 1, 1, 1], [1, 129, 700, 3000, 64]),
        ([300, 1, 77, 1], [300, 900, 1000, 5]),
        ([2500], [2500]),
    ):
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
        kind = "decode" if max(new) == 1 else "prefill" if len(new) > 1 else "lone prompt"
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
