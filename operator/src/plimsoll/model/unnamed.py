"""A family that has no row here, from its headers: plain decoders with grouped-query attention.

Weights are exact whatever the family; what a layer caches is read off its projections. Whatever could cache
otherwise (a latent, a window, a state) is refused by field or by tensor: a wrong guess would be a plan that
runs out of memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from plimsoll.model.blueprint import Blueprint, FeedForward, Layer, Mixer, Tensor
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable
from plimsoll.model.facts import Role
from plimsoll.model.fields import MAX_LAYERS, Fields
from plimsoll.model.quantization.companions import canonical, place
from plimsoll.model.source import StoredTensor

_LAYER = re.compile(r"model\.layers\.(\d{1,4})\.(.+)")
_FOREIGN = (
    "kv_lora_rank", "sliding_window", "sliding_window_pattern", "layer_types", "num_kv_shared_layers",
    "ssm_state_size", "mamba_d_state", "linear_num_key_heads", "attention_chunk_size",
    "hybrid_override_pattern", "index_topk", "block_types", "cross_attention_layers",
)  # fmt: skip
"""Fields whose presence means that a layer does not cache plain keys and values of all tokens."""
_UP = ("up_proj.weight", "w3.weight")
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"self_attn\.(q_proj|o_proj)\.weight", Role.ATTENTION_Q),
    (r"self_attn\.q_proj\.bias", Role.ATTENTION_Q),
    (r"self_attn\.(k|v)_proj\.(weight|bias)", Role.ATTENTION_KV),
    (r"mlp\.(gate_proj|up_proj|down_proj)\.weight", Role.MLP),
    (r"mlp\.(gate_proj|up_proj)\.bias", Role.MLP),
    (r"(mlp|block_sparse_moe)\.experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight", Role.EXPERT),
    (r"mlp\.shared_experts?\.(gate_proj|up_proj|down_proj)\.weight", Role.MLP),
    (r"(mlp|block_sparse_moe)\.(gate|router|shared_expert_gate)\.weight", Role.REPLICATED),
    (r"(mlp|block_sparse_moe)\.(gate\.)?e_score_correction_bias", Role.NORM),
    (r"(.*_)?(layer)?norm\w*\.(weight|bias)", Role.NORM),
    (r"self_attn\.(q|k)_(layer)?norm\.(weight|bias)", Role.NORM),
    (r"(self_attn\.o_proj|mlp\.down_proj)\.bias", Role.NORM),
)


def blueprint_from(f: Fields, tensors: Sequence[StoredTensor], architecture: str) -> Blueprint:
    """The blueprint of an unquantized checkpoint whose tensors speak for themselves. Raises
    ArchitectureUnsupported when one does not."""
    for key in _FOREIGN:
        if f.values.get(key) not in (None, False, 0):
            raise _unknown(f, architecture, f"its config.json has {key}")
    if f.values.get("quantization_config") is not None:
        raise _unknown(f, architecture, "its config.json has quantization_config")
    count, found = f.size("num_hidden_layers", most=MAX_LAYERS), dict[int, dict[str, Tensor]]()
    outer: list[Tensor] = []
    for tensor in tensors:
        name = canonical(tensor.name)
        inside = _LAYER.fullmatch(name)
        if inside is None:
            outer.append(_outer(f, tensor, name, architecture))
        else:
            role = _role(inside.group(2))
            if role is None or int(inside.group(1)) >= count:
                raise _unknown(f, architecture, f"nothing is known of its tensor {tensor.name[:120]!r}")
            layer, part = found.setdefault(int(inside.group(1)), {}), place(inside.group(2)).module
            copies = layer[part].copies + 1 if part in layer else 1
            layer[part] = Tensor(part, role, tensor.shape, copies=copies)
    layers = tuple(_layer(f, index, found.get(index, {}), architecture) for index in range(count))
    heads = f.size("num_attention_heads")
    vocab = next((t.shape[0] for t in outer if t.role is Role.EMBEDDING), 0)
    widths = [t.shape[0] for t in layers[0].tensors if t.name.endswith(_UP)]
    if not vocab or not widths:
        raise _unknown(f, architecture, "it has no model.embed_tokens, or its first layer no up projection")
    return Blueprint(
        architecture=architecture[:80],
        hidden=f.hidden,
        intermediate=max(widths),
        heads=heads,
        vocab=vocab,
        max_position=f.size("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", default=not any(t.role is Role.HEAD for t in outer)),
        dtype=None,
        prefix="model.layers.{}.",
        outer=tuple(outer),
        layers=layers,
    )


def _outer(f: Fields, tensor: StoredTensor, name: str, architecture: str) -> Tensor:
    roles = {
        "model.embed_tokens.weight": Role.EMBEDDING,
        "lm_head.weight": Role.HEAD,
        "model.norm.weight": Role.NORM,
        "model.norm.bias": Role.NORM,
    }
    if name not in roles:
        raise _unknown(f, architecture, f"nothing is known of its tensor {tensor.name[:120]!r}")
    return Tensor(name, roles[name], tensor.shape)


def _role(name: str) -> Role | None:
    return next((role for pattern, role in _ROLES if re.fullmatch(pattern, name)), None)


def _layer(f: Fields, index: int, by_name: Mapping[str, Tensor], architecture: str) -> Layer:
    heads, kv_heads = f.size("num_attention_heads"), f.size("num_key_value_heads")
    rows = {}
    for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        tensor = by_name.get(f"self_attn.{part}_proj.weight")
        if tensor is None or len(tensor.shape) != 2:
            raise _unknown(f, architecture, f"its layer {index} has no self_attn.{part}_proj")
        if tensor.shape[0] % count:
            raise FileUnreadable(
                f"{f.name}: layer {index}: {tensor.shape[0]} rows of self_attn.{part}_proj do not divide"
                f" by {count} heads"
            )
        rows[part] = tensor.shape[0] // count
    if rows["q"] != rows["k"]:
        raise _unknown(f, architecture, f"queries of layer {index} are {rows['q']} wide, keys {rows['k']}")
    mixer = Mixer(tuple(by_name.values()), kv_heads=kv_heads, key_dim=rows["k"], value_dim=rows["v"])
    experts = [t.shape[0] for t in by_name.values() if t.role is Role.EXPERT and t.name.endswith(_UP)]
    active = f.size("num_experts_per_tok", default=1) * experts[0] if experts else 0
    return Layer(mixer, FeedForward(active_width=active), ())


def _unknown(f: Fields, architecture: str, why: str) -> ArchitectureUnsupported:
    return ArchitectureUnsupported(f"{f.name}: unknown architecture {architecture[:80]!r}: {why}")
