"""Header-only repositories of well-known models, generated from their hyper-parameters.

The hyper-parameters are facts of the published config.json files, written down here; nothing is copied.
Tensor shapes follow in closed form, and a test holds their sum against the published parameter counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dev.hub.repository import Access, HubFile, MemoryFile, Repository, header_only
from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.source import StoredTensor

SHARD_BYTES = 5_000_000_000
"""transformers splits checkpoints at 5 GB."""


def _model(
    model_type: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocab: int,
    **more: Any,
) -> Mapping[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **more,
    }


_LLAMA_3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_LLAMA_3 = {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": _LLAMA_3_ROPE}
_QWEN_3 = {"max_position_embeddings": 40960, "rope_theta": 1000000, "head_dim": 128, "rms_norm_eps": 1e-6}
_MISTRAL = {"max_position_embeddings": 32768, "sliding_window": None}

WELL_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Llama-3.1-8B-Instruct": _model("llama", 32, 4096, 32, 8, 14336, 128256, **_LLAMA_3),
    "meta-llama/Llama-3.3-70B-Instruct": _model("llama", 80, 8192, 64, 8, 28672, 128256, **_LLAMA_3),
    "meta-llama/Llama-3.1-405B-Instruct": _model("llama", 126, 16384, 128, 8, 53248, 128256, **_LLAMA_3),
    "mistralai/Mistral-7B-Instruct-v0.3": _model(
        "mistral", 32, 4096, 32, 8, 14336, 32768, rope_theta=1000000.0, **_MISTRAL
    ),
    "mistralai/Mistral-Small-24B-Instruct-2501": _model(
        "mistral", 40, 5120, 32, 8, 32768, 131072, head_dim=128, rope_theta=100000000.0, **_MISTRAL
    ),
    "Qwen/Qwen3-8B": _model("qwen3", 36, 4096, 32, 8, 12288, 151936, **_QWEN_3),
    "Qwen/Qwen3-32B": _model("qwen3", 64, 5120, 64, 8, 25600, 151936, **_QWEN_3),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _model(
        "llama", 30, 576, 9, 3, 1536, 49152,
        max_position_embeddings=8192, rope_theta=100000, tie_word_embeddings=True,
    ),
    "01-ai/Yi-34B": _model(
        "llama", 60, 7168, 56, 8, 20480, 64000, max_position_embeddings=4096, rope_theta=5000000.0
    ),
    "openai/gpt-oss-20b": _model(
        "gpt_oss", 24, 2880, 64, 8, 2880, 201088, head_dim=64, num_local_experts=32, num_experts_per_tok=4,
        sliding_window=128, max_position_embeddings=131072, quantization_config={"quant_method": "mxfp4"},
    ),
}  # fmt: skip


def well_known(name: str, access: Access = Access.PUBLIC) -> Repository:
    """The header-only repository of one well-known model. Raises KeyError that lists them."""
    if name not in WELL_KNOWN:
        raise KeyError(f"{name}: known are {', '.join(WELL_KNOWN)}")
    return generate(name, WELL_KNOWN[name], access)


def generate(name: str, config: Mapping[str, Any], access: Access = Access.PUBLIC) -> Repository:
    """A header-only repository from the hyper-parameters of a config.json."""
    raw = json.dumps(config, indent=2).encode()
    shards = _split(closed_form(parse_config(raw), "config.json"))
    files: dict[str, HubFile] = {"config.json": MemoryFile(raw, len(raw))}
    if len(shards) == 1:
        files["model.safetensors"] = header_only(safetensors_header(shards[0]))
        return Repository(name, files, access)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[shard] = header_only(safetensors_header(tensors))
        weight_map |= {tensor.name: shard for tensor in tensors}
    total = sum(tensor.bytes for tensors in shards for tensor in tensors)
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}).encode()
    files["model.safetensors.index.json"] = MemoryFile(index, len(index))
    return Repository(name, files, access)


def _split(tensors: list[StoredTensor]) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.bytes > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.bytes
    return shards


def safetensors_header(tensors: list[StoredTensor]) -> bytes:
    """The beginning of a safetensors file with these tensors, one after the other."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.bytes
        content[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(content, separators=(",", ":")).encode()
    # The format aligns tensor data to 8 bytes with spaces after the JSON.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
