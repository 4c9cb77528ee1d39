"""Attention blocks: grouped queries, and the latent attention of DeepSeek.

Source of names and shapes: the `modeling_*.py` of transformers 5.23 and the checkpoints' own indexes.
"""

from __future__ import annotations

from plimsoll.model.blueprint import Mixer, Tensor
from plimsoll.model.errors import FileUnreadable
from plimsoll.model.facts import Role
from plimsoll.model.fields import MAX_HEADS, Fields

INDEXER_SCALE_BYTES = 4
"""vLLM keeps an indexer's key in FP8 with one FP32 scale (`sparse_attn_indexer`)."""


def linear(
    name: str, role: Role, rows: int, columns: int, *, bias: bool = False, bias_role: Role | None = None
) -> tuple[Tensor, ...]:
    """A matrix and its bias. A bias added before the reduction is divided like its matrix, one added after
    is held whole (`bias_role`)."""
    weight = Tensor(f"{name}.weight", role, (rows, columns), linear=True)
    return (weight, Tensor(f"{name}.bias", bias_role or role, (rows,))) if bias else (weight,)


def norm(name: str, width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A norm's weight, and its bias where it has one."""
    weight = Tensor(f"{name}.weight", Role.NORM, (width,))
    return (weight, Tensor(f"{name}.bias", Role.NORM, (width,))) if bias else (weight,)


def heads_of(f: Fields) -> tuple[int, int]:
    """Query and KV heads. Raises FileUnreadable when they do not group."""
    heads = f.size("num_attention_heads", most=MAX_HEADS)
    kv_heads = f.size("num_key_value_heads", default=heads, most=MAX_HEADS)
    if heads % kv_heads:
        raise FileUnreadable(
            f"{f.name}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    return heads, kv_heads


def head_width(f: Fields) -> int:
    return f.size("head_dim", default=max(1, f.hidden // f.size("num_attention_heads")))


def grouped_query(
    f: Fields,
    *,
    prefix: str = "self_attn",
    qkv_bias: bool = False,
    output_bias: bool = False,
    head_norm: bool = False,
    wide_norm: bool = False,
    fused: str = "",
    gated: bool = False,
    sinks: bool = False,
    window: int | None = None,
    kv_heads: int | None = None,
    key_dim: int | None = None,
    values_projected: bool = True,
    caches: bool = True,
) -> Mixer:
    """One key and value head for a group of query heads.

    `head_norm`: q and k normed per head; `wide_norm`: over all heads. `fused`: one matrix of that name for q,
    k and v. `gated`: q carries an output gate of its own width. `values_projected` False: the keys serve as
    values too, both are cached. `caches` False: keys and values of an earlier layer are used.
    """
    heads, default_kv = heads_of(f)
    kv = default_kv if kv_heads is None else kv_heads
    width = head_width(f) if key_dim is None else key_dim
    value = f.size("v_head_dim", default=width) if key_dim is None else width
    hidden, q_rows = f.hidden, heads * width * (2 if gated else 1)
    tensors: tuple[Tensor, ...]
    if fused:
        shared = kv * (width + value)
        both = Tensor(
            f"{prefix}.{fused}.weight", Role.ATTENTION_Q, (q_rows + shared, hidden), linear=True,
            key_value_rows=shared,
        )  # fmt: skip
        bias = Tensor(f"{prefix}.{fused}.bias", Role.ATTENTION_Q, both.shape[:1], key_value_rows=shared)
        tensors = (both, bias) if qkv_bias else (both,)
    else:
        tensors = linear(f"{prefix}.q_proj", Role.ATTENTION_Q, q_rows, hidden, bias=qkv_bias)
        if caches:
            tensors += linear(f"{prefix}.k_proj", Role.ATTENTION_KV, kv * width, hidden, bias=qkv_bias)
        if caches and values_projected:
            tensors += linear(f"{prefix}.v_proj", Role.ATTENTION_KV, kv * value, hidden, bias=qkv_bias)
    output = "dense" if fused == "query_key_value" else "o_proj"
    tensors += linear(
        f"{prefix}.{output}", Role.ATTENTION_Q, hidden, heads * value, bias=output_bias, bias_role=Role.NORM
    )
    if head_norm or wide_norm:
        tensors += norm(f"{prefix}.q_norm", heads * width if wide_norm else width)
        if caches:
            tensors += norm(f"{prefix}.k_norm", kv * width if wide_norm else width)
    if sinks:
        tensors += (Tensor(f"{prefix}.sinks", Role.NORM, (heads,)),)
    if not caches:
        return Mixer(tensors)
    return Mixer(tensors, kv_heads=kv, key_dim=width, value_dim=value, window=window)


def latent(f: Fields, *, indexer: bool = False) -> Mixer:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): every head reads one latent
    of `kv_lora_rank` and one rotary key, which is all that is cached.

    `indexer`: the sparse attention of DeepSeek-V3.2, with a cache of its own keys.
    """
    heads, hidden = f.size("num_attention_heads"), f.hidden
    rank, rope = f.size("kv_lora_rank"), f.size("qk_rope_head_dim")
    nope, value = f.size("qk_nope_head_dim"), f.size("v_head_dim")
    query_rank = f.size("q_lora_rank", least=0) if f.values.get("q_lora_rank") is not None else 0
    bias = f.flag("attention_bias", default=False)
    name, rows = "self_attn", heads * (nope + rope)
    if query_rank:
        tensors = linear(f"{name}.q_a_proj", Role.REPLICATED, query_rank, hidden, bias=bias)
        tensors += norm(f"{name}.q_a_layernorm", query_rank)
        tensors += linear(f"{name}.q_b_proj", Role.ATTENTION_Q, rows, query_rank)
    else:
        tensors = linear(f"{name}.q_proj", Role.ATTENTION_Q, rows, hidden)
    tensors += linear(f"{name}.kv_a_proj_with_mqa", Role.REPLICATED, rank + rope, hidden, bias=bias)
    tensors += norm(f"{name}.kv_a_layernorm", rank)
    tensors += linear(f"{name}.kv_b_proj", Role.ATTENTION_Q, heads * (nope + value), rank)
    tensors += linear(
        f"{name}.o_proj", Role.ATTENTION_Q, hidden, heads * value, bias=bias, bias_role=Role.NORM
    )
    index_bytes = 0
    if indexer:
        index_heads, index_dim = f.size("index_n_heads"), f.size("index_head_dim")
        tensors += linear(f"{name}.indexer.wq_b", Role.REPLICATED, index_heads * index_dim, query_rank)
        tensors += linear(f"{name}.indexer.wk", Role.REPLICATED, index_dim, hidden)
        tensors += norm(f"{name}.indexer.k_norm", index_dim, bias=True)
        tensors += linear(f"{name}.indexer.weights_proj", Role.REPLICATED, index_heads, hidden)
        index_bytes = index_dim + INDEXER_SCALE_BYTES
    return Mixer(tensors, kv_heads=1, key_dim=rank + rope, value_dim=0, index_bytes=index_bytes)
