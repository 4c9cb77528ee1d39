"""A GGUF file's metadata and tensor names → the fields and names of a config.json and its checkpoint.

Keys are `<architecture>.<name>`, tensors `blk.<layer>.<part>` (llama.cpp `gguf-py/gguf/constants.py`).
Mistral checkpoints call themselves llama here; that is what llama.cpp runs them as, and their tensors are the
same. So one description of a family serves both formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from plimsoll.model.blueprint import Blueprint
from plimsoll.model.config_json import blueprint_of
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable, FormatUnsupported
from plimsoll.model.fields import MAX_LAYERS, Fields
from plimsoll.model.gguf import GGUFHeader
from plimsoll.model.source import StoredTensor

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose GGUF names are known here; the others are read as safetensors."""
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def blueprint(header: GGUFHeader, name: str) -> Blueprint:
    """What the metadata describes. Raises FileUnreadable, ArchitectureUnsupported or FormatUnsupported."""
    found = header.metadata.get("general.architecture")
    if not isinstance(found, str):
        raise ArchitectureUnsupported(f"{name}: general.architecture: expected a string, found {found!r:.80}")
    if found not in ARCHITECTURES:
        raise ArchitectureUnsupported(
            f"{name}: unknown architecture: {found[:80]!r} is not supported as GGUF; supported are"
            f" {', '.join(ARCHITECTURES)}"
        )
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise FormatUnsupported(
            f"{name}: split.count {header.metadata['split.count']}: a split GGUF is not read;"
            " merge it with llama-gguf-split --merge"
        )
    return blueprint_of(Fields(_values(header, found, name), name))


def _values(header: GGUFHeader, architecture: str, name: str) -> dict[str, Any]:
    fields = Fields(_flat(header.metadata), name)
    prefix = f"{architecture}."
    hidden = fields.size(f"{prefix}embedding_length")
    heads = fields.size(f"{prefix}attention.head_count")
    kv_heads = fields.size(f"{prefix}attention.head_count_kv", default=heads)
    if heads % kv_heads:
        raise FileUnreadable(
            f"{name}: {architecture}.attention.head_count {heads} is no multiple of head_count_kv {kv_heads}"
        )
    key_dim = fields.size(f"{prefix}attention.key_length", default=max(1, hidden // heads))
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FileUnreadable(f"{name}: tensor token_embd.weight is missing or no matrix")
    window = fields.size(f"{prefix}attention.sliding_window", default=0, least=0)
    return {
        "model_type": architecture,
        "hidden_size": hidden,
        "num_hidden_layers": fields.size(f"{prefix}block_count", most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": key_dim,
        "v_head_dim": fields.size(f"{prefix}attention.value_length", default=key_dim),
        "intermediate_size": fields.size(f"{prefix}feed_forward_length"),
        "max_position_embeddings": fields.size(f"{prefix}context_length"),
        # Not the metadata's `vocab_size`: converters pad the embedding, and it is the embedding that is
        # loaded.
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": architecture != "qwen2" and "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "sliding_window": window or None,
        "use_sliding_window": bool(window),
        "max_window_layers": 0,
    }


def _flat(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Some converters write the value of each layer."""
    return {
        key: value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
        for key, value in metadata.items()
    }


def renamed(tensors: tuple[StoredTensor, ...]) -> Iterator[StoredTensor]:
    """The tensors under the names that a safetensors checkpoint gives them; unknown names stay."""
    for tensor in tensors:
        yield replace(tensor, name=_name(tensor.name))


def _name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{end}"
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{end}"
    return name
