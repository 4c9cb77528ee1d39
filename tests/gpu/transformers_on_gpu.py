"""What transformers' own `generate` reaches on the card, to stand beside the engine's figures of one run.

`python tests/gpu/transformers_on_gpu.py --out results.json [--batches 1 32]`: Llama-3.1-8B's shape, random
BF16 weights, static cache, which transformers compiles by itself. Tokens a second while decoding: the time of
a long answer less that of a short one, so that prompt and start of both cancel out. `--device cpu` runs the
same code on a small shape, without a card to measure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
SMALL = LLAMA_8B | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
CONTEXT = {1: 128}
"""Prompt tokens by batch; others have 512."""
SHORT, LONG = 8, 136
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shape = LLAMA_8B if device.type == "cuda" else SMALL
    with device:
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=None, pad_token_id=0)).eval()
    results: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        results["device"] = torch.cuda.get_device_name(device)
    for batch in arguments.batches:
        results[f"decode-{batch}"] = decode(model, batch, CONTEXT.get(batch, 512))
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(json.dumps({f"decode-{batch}": results[f"decode-{batch}"]}), flush=True)


def decode(model: LlamaForCausalLM, batch: int, context: int) -> dict[str, Any]:
    """Tokens a second of `batch` sequences behind prompts of `context` tokens; the first round, which
    compiles, does not count."""
    prompts = torch.randint(model.config.vocab_size, (batch, context), device=model.device)
    began = time.monotonic()
    answered(model, prompts, LONG, context + LONG)
    compiled = time.monotonic() - began
    rates = []
    for _ in range(REPEATS):
        short = answered(model, prompts, SHORT, context + LONG)
        long = answered(model, prompts, LONG, context + LONG)
        rates.append(batch * (LONG - SHORT) / (long - short))
    return {
        "tokensPerSecond": median(rates),
        "all": rates,
        "compileSeconds": compiled,
        "contextTokens": context,
    }


def answered(model: LlamaForCausalLM, prompts: torch.Tensor, tokens: int, longest: int) -> float:
    """Seconds for `tokens` greedy tokens, in a static cache of `longest`."""
    began = time.monotonic()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        cache_implementation="static",
        max_cache_len=longest,
    ).cpu()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
