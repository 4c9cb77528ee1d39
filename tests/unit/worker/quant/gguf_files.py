"""Small GGUF models whose matrices are blocks of any type: random numbers with scales that make weights of
about 0.05. The `gguf` package writes no K-quants, and packs the others from weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType

Blocks = np.ndarray[Any, np.dtype[np.uint8]]

HEADS, KV_HEADS, LAYERS, VOCAB = 8, 2, 2, 50
SIZES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 0.012),),
    "Q4_1": ((0, 0.012), (2, -0.09)),
    "Q5_K": ((0, 0.0002), (2, 0.002)),
    "Q8_0": ((0, 0.0008),),
    "Q4_K": ((0, 0.0004), (2, 0.003)),
    "Q6_K": ((208, 0.00006),),
}
"""Where FP16 scales stand in a block, and about what they are."""


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> Blocks:
    """(rows, bytes of a row)."""
    random = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for place, about in SIZES[kind]:
        scales = (about * random.uniform(0.5, 1.5, len(blocks))).astype(np.float16)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def written(
    path: Path,
    kinds: Mapping[str, str],
    *,
    architecture: str = "llama",
    hidden: int = 256,
    inner: int = 512,
) -> Path:
    """kinds: block types by the part of a layer ("attn_q"), or of all others under "": F32 where none is."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("tokenizer.ggml.tokens", [f"token {index}" for index in range(VOCAB)])
    kv = hidden // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{part}": shape
            for part, shape in {
                "attn_norm.weight": (hidden,),
                "attn_q.weight": (hidden, hidden),
                "attn_k.weight": (kv, hidden),
                "attn_v.weight": (kv, hidden),
                "attn_output.weight": (hidden, hidden),
                "ffn_norm.weight": (hidden,),
                "ffn_gate.weight": (inner, hidden),
                "ffn_up.weight": (inner, hidden),
                "ffn_down.weight": (hidden, inner),
                **({f"attn_{part}.bias": (size,) for part, size in (("q", hidden), ("k", kv), ("v", kv))}
                   if architecture == "qwen2" else {}),
            }.items()
        }  # fmt: skip
    for seed, (name, shape) in enumerate(shapes.items()):
        kind = kinds.get(name.split(".")[-2], kinds.get("", ""))
        if len(shape) == 1 or not kind:
            writer.add_tensor(name, np.random.default_rng(seed).normal(0.5, 0.2, shape).astype(np.float32))
        else:
            blocks = random_blocks(kind, *shape, seed)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
