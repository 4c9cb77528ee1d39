"""Checkpoints made by hand, right and wrong, for the readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass
class MemorySource:
    """A `Source` over bytes; `sizes` may claim more than there is, as a sparse or truncated file would."""

    content: Mapping[str, bytes]
    entry: str = ""
    commit: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def files(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.content.items()} | dict(self.sizes)

    def read(self, name: str, start: int, length: int) -> bytes:
        self.reads.append((name, start, length))
        return self.content[name][start : start + length]


def config(**changes: Any) -> bytes:
    """A config.json of a tiny llama; None removes a field."""
    merged = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    return json.dumps(merged).encode()


def safetensors(header: Mapping[str, Any] | bytes, data_bytes: int | None = None) -> bytes:
    """A file with this header and zeros for data: as many as the header promises, unless told otherwise."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data_bytes is None:
        assert not isinstance(header, bytes)
        data_bytes = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


U32, STRING, ARRAY, U64 = 4, 8, 9, 10
F32, F16, Q4_1, Q8_0, Q4_K, Q6_K = 0, 1, 3, 8, 12, 14


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_metadata(key: str, value: int | str | list[str] | list[int]) -> bytes:
    head = gguf_string(key)
    match value:
        case int():
            return head + struct.pack("<II", U32, value)
        case str():
            return head + struct.pack("<I", STRING) + gguf_string(value)
        case [str(), *_]:
            strings = b"".join(gguf_string(text) for text in value)  # type: ignore[arg-type]
            return head + struct.pack("<IIQ", ARRAY, STRING, len(value)) + strings
        case _:
            numbers = struct.pack(f"<{len(value)}I", *value)
            return head + struct.pack("<IIQ", ARRAY, U32, len(value)) + numbers


def gguf_tensor(name: str, dimensions: list[int], kind: int, offset: int) -> bytes:
    """One tensor info; `dimensions` as GGUF writes them, the fastest first."""
    return (
        gguf_string(name)
        + struct.pack("<I", len(dimensions))
        + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    metadata: list[bytes],
    tensors: list[bytes],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    metadata_count: int | None = None,
    data: int = 0,
) -> bytes:
    """A GGUF file; the counts may lie. `data` bytes follow the padded header."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if metadata_count is None else metadata_count,
    )
    head += b"".join(metadata) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def llama_metadata(
    layers: int = 2, *, hidden: int = 256, intermediate: int = 512, **changes: Any
) -> list[bytes]:
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": intermediate,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 2048,
        "tokenizer.ggml.tokens": [f"token {index}" for index in range(500)],
    }
    return [gguf_metadata(key, value) for key, value in {**values, **changes}.items()]


GGML_BYTES = {F32: (1, 4), F16: (1, 2), Q4_1: (32, 20), Q8_0: (32, 34), Q4_K: (256, 144), Q6_K: (256, 210)}


def llama_gguf(
    kinds: list[list[int]], *, hidden: int = 256, intermediate: int = 512, vocab: int = 500
) -> bytes:
    """A whole llama GGUF: for each layer the ggml types of q, k, v, o, gate, up and down."""
    kv = hidden // 2
    shapes = {
        "attn_q": [hidden, hidden],
        "attn_k": [hidden, kv],
        "attn_v": [hidden, kv],
        "attn_output": [hidden, hidden],
        "ffn_gate": [hidden, intermediate],
        "ffn_up": [hidden, intermediate],
        "ffn_down": [intermediate, hidden],
    }
    wanted = [("token_embd.weight", [hidden, vocab], Q8_0), ("output_norm.weight", [hidden], F32)]
    for layer, types in enumerate(kinds):
        wanted += [
            (f"blk.{layer}.{name}.weight", shape, kind)
            for (name, shape), kind in zip(shapes.items(), types, strict=True)
        ]
        wanted += [(f"blk.{layer}.{name}.weight", [hidden], F32) for name in ("attn_norm", "ffn_norm")]
    infos, offset = [], 0
    for name, dimensions, kind in wanted:
        infos.append(gguf_tensor(name, dimensions, kind, offset))
        elements, size = GGML_BYTES[kind]
        count = dimensions[0] * (dimensions[1] if len(dimensions) > 1 else 1)
        offset += -(-count // elements * size // 32) * 32
    return gguf(llama_metadata(len(kinds), hidden=hidden, intermediate=intermediate), infos, data=offset)
