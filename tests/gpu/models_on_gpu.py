"""Every family of decoders on a real card: loaded by the GPU's path, BF16 logits near the CPU's FP32 ones, a
decode step from a graph equal to an eager one. Those with experts, and one without, in every precision too.

`python tests/gpu/models_on_gpu.py` needs one NVIDIA GPU; it prints a line of JSON a family and ends with 1
when one is off. Not part of `make test`, which runs where no GPU is.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.launch import Precision
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import DTYPES, load_model
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.settings import LoadFormat

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROMPT, BLOCK = 40, 16
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma2": {"sliding_window": 24},
    "gemma3_text": {"sliding_window": 24, "sliding_window_pattern": 2},
    "phi3": {"partial_rotary_factor": 0.5},
    "granite": {"residual_multiplier": 0.3, "logits_scaling": 4.0, "attention_multiplier": 0.1},
    "mixtral": {"num_local_experts": 8, "sliding_window": None},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128},
}
CASES: list[tuple[str, Precision | None]] = [
    *((name, None) for name in FAMILIES),
    *(
        (name, matrices)
        for name in ("llama", "mixtral", "qwen3_moe")
        for matrices in (Precision.INT8, Precision.INT4, Precision.FP8)
    ),
]
"""Families, and what their matrices are rounded to while they are loaded."""
MOST_DIFFERENCE = 0.06
"""Of BF16 logits with a deviation of about 1, relative to that deviation (root of the mean square)."""
MOST_WHERE_IT_TIPS = 0.25
"""Where a router's near tie may fall to another expert, or a GPU rounds activations too (FP8)."""


def batch(start: int, count: int, device: torch.device) -> AttentionBatch:
    """`count` tokens of one sequence whose blocks lie one after another."""
    positions = torch.arange(start, start + count, device=device)
    pages = -(-(PROMPT + 8) // BLOCK)
    return AttentionBatch(
        block_tables=torch.arange(pages, dtype=torch.int32, device=device)[None],
        context_lens=torch.tensor([start + count], dtype=torch.int32, device=device),
        query_start=torch.tensor([0, count], dtype=torch.int32, device=device),
        positions=positions,
        slots=positions.clone(),
        max_query_len=count,
        max_context_len=PROMPT + 8,
        block_size=BLOCK,
    )


def cache_of(model: Decoder) -> KVCache:
    return KVCache(model.config, blocks=8, block_size=BLOCK, dtype=model.dtype, device=model.device)


@torch.inference_mode()
def answers(model: Decoder, tokens: torch.Tensor) -> tuple[torch.Tensor, KVCache]:
    """Logits after a prompt and after one more token, (2, vocabulary) in FP32."""
    cache, tokens = cache_of(model), tokens.to(model.device)
    hidden = model(tokens[:PROMPT], batch(0, PROMPT, model.device), cache)
    first = model.logits(hidden[-1:]).float()
    second = model.logits(model(tokens[PROMPT:], batch(PROMPT, 1, model.device), cache)).float()
    return torch.cat((first, second)).cpu(), cache


@torch.inference_mode()
def replayed(model: Decoder, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """The second of the answers from a captured graph: (1, vocabulary) in FP32."""
    token, step = tokens[PROMPT:].to(CUDA), batch(PROMPT, 1, CUDA)

    def decode() -> torch.Tensor:
        return model.logits(model(token, step, cache)).float()

    decode()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode()
    graph.replay()
    torch.cuda.synchronize()
    return out.cpu()


def check(name: str, matrices: Precision | None, folder: Path) -> dict[str, Any]:
    """One family from files: random weights by the CPU's path, stored in BF16, loaded by both. Rounded ones
    have scales in BF16 on both, and numbers that are equal but for ties."""
    (folder / "config.json").write_text(json.dumps({"model_type": name, **SHAPE, **FAMILIES[name]}))
    made = load_model(open_checkpoint(folder, LoadFormat.DUMMY), device=CPU, precision=Precision.BF16)
    save_file(named(made), folder / "model.safetensors")
    began = time.perf_counter()
    ours = load_model(open_checkpoint(folder), device=CUDA, precision=Precision.BF16, matrices=matrices)
    seconds = time.perf_counter() - began
    beside = Precision.BF16 if matrices else Precision.FP32
    exact = load_model(open_checkpoint(folder), device=CPU, precision=beside, matrices=matrices)
    expected_parts = exact if matrices else made
    off = [
        (part.cpu().float() != stored.float()).float().mean().item()
        for part, stored in zip(ours.parameters(), expected_parts.parameters(), strict=True)
    ]
    same = max(off) <= (1e-3 if matrices else 0)
    tokens = torch.randint(0, SHAPE["vocab_size"], (PROMPT + 1,), generator=torch.Generator().manual_seed(0))
    expected, _ = answers(exact, tokens)
    found, cache = answers(ours, tokens)
    difference = ((found - expected).square().mean().sqrt() / expected.std()).item()
    graph = replayed(ours, tokens, cache)
    graph_off = (graph - found[1:]).abs().max().item()
    tips = matrices is Precision.FP8 or exact.config.experts is not None
    most = MOST_WHERE_IT_TIPS if tips else MOST_DIFFERENCE
    good = same and difference < most and graph_off == 0.0
    return {
        "family": name,
        "matrices": matrices or "BF16",
        "good": good,
        "weightsEqual": same,
        "difference": round(difference, 4),
        "graphOff": graph_off,
        "loadSeconds": round(seconds, 3),
    }


def named(model: Decoder) -> dict[str, torch.Tensor]:
    """The parameters under the engine's own names, which the loader takes as well."""
    return {
        f"model.{name}" if "lm_head" not in name else name: part for name, part in model.named_parameters()
    }


def check_conversion(folder: Path) -> dict[str, Any]:
    """Every type of file into every type on the card, over more than one buffer."""
    from plimsoll_worker.loading.transfer import Extent, copy_extent

    good = True
    computing = [dtype for precision, dtype in DTYPES.items() if precision.computes]
    for stored in computing:
        tensor = torch.randn(3000, 1111).to(stored)
        (folder / "raw").write_bytes(b"\0" * 8 + tensor.view(torch.uint8).numpy().tobytes())
        for kept in computing:
            target = torch.zeros(tensor.shape, dtype=kept, device=CUDA)
            copy_extent(Extent(folder / "raw", 8, stored, tensor.shape), target)
            good &= torch.equal(target.cpu(), tensor.to(kept))
    return {"conversion": "every type into every type", "good": good}


def main() -> int:
    good = True
    with tempfile.TemporaryDirectory() as folder:
        results = [lambda: check_conversion(Path(folder))]
        results += [functools.partial(check, name, matrices, Path(folder)) for name, matrices in CASES]
        for result in results:
            found = result()
            good &= found["good"]
            print(json.dumps(found), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
