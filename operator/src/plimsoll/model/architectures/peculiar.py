"""What one family alone does: Falcon's heads, Gemma 4's two kinds of attention, Nemotron-H's one block a
layer."""

from __future__ import annotations

from dataclasses import replace

from plimsoll.model.architectures.attention import grouped_query, head_width, heads_of, latent, linear, norm
from plimsoll.model.architectures.feed_forward import Experts, gated, plain
from plimsoll.model.architectures.layouts import FULL, SLIDING
from plimsoll.model.architectures.recurrent import Mamba2
from plimsoll.model.blueprint import FeedForward, Mixer, Tensor
from plimsoll.model.errors import FileUnreadable
from plimsoll.model.facts import Role
from plimsoll.model.fields import MAX_EXPERTS, Fields

# Falcon --------------------------------------------------------------------------------------------------


def falcon_mixers(f: Fields) -> list[Mixer]:
    """One fused projection; one KV head (7B), a few (40B, 180B) or one for each query head (RW)."""
    heads = f.size("num_attention_heads")
    if f.flag("new_decoder_architecture", default=False):
        kv_heads = f.size("num_kv_heads", default=heads)
    else:
        kv_heads = 1 if f.flag("multi_query", default=True) else heads
    bias = f.flag("bias", default=False)
    fused = replace(f, values={**f.values, "num_key_value_heads": kv_heads})
    mixer = grouped_query(
        fused, prefix="self_attention", fused="query_key_value", qkv_bias=bias, output_bias=bias
    )
    return [mixer] * f.layers


def falcon_feed_forwards(f: Fields) -> list[FeedForward]:
    block = plain(
        f, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", width=f.size("ffn_hidden_size"),
        bias=f.flag("bias", default=False),
    )  # fmt: skip
    return [block] * f.layers


def falcon_norms(f: Fields) -> tuple[Tensor, ...]:
    """Two norms beside each other in the new layout, one when attention and MLP run in parallel, else two in
    turn."""
    if (
        f.flag("new_decoder_architecture", default=False)
        and f.size("num_ln_in_parallel_attn", default=2) == 2
    ):
        return norm("ln_attn", f.hidden, bias=True) + norm("ln_mlp", f.hidden, bias=True)
    first = norm("input_layernorm", f.hidden, bias=True)
    if f.flag("parallel_attn", default=True):
        return first
    return first + norm("post_attention_layernorm", f.hidden, bias=True)


# StableLM ------------------------------------------------------------------------------------------------


def stablelm_norms(f: Fields) -> tuple[Tensor, ...]:
    """Attention and MLP in parallel share one norm; heads may have one each."""
    tensors: tuple[Tensor, ...] = ()
    if not f.flag("use_parallel_residual", default=False):
        tensors += norm("post_attention_layernorm", f.hidden, bias=True)
    if f.flag("qk_layernorm", default=False):
        for name, count in zip(("q", "k"), heads_of(f), strict=True):
            for head in range(count):
                tensors += norm(f"self_attn.{name}_layernorm.norms.{head}", head_width(f))
    return tensors


# DeepSeek-V3.2 and GLM-5 ---------------------------------------------------------------------------------


def indexed_mixers(f: Fields) -> list[Mixer]:
    """Latent attention with an indexer; `indexer_types` names the layers that reuse the choice of an earlier
    one."""
    full, shared = latent(f, indexer=True), latent(f)
    kinds = f.kinds("indexer_types", f.layers, ("full", "shared"))
    return [shared if kinds is not None and kinds[i] == "shared" else full for i in range(f.layers)]


# Gemma 4 -------------------------------------------------------------------------------------------------


def gemma_4_mixers(f: Fields) -> list[Mixer]:
    """Sliding and full layers differ in head width and KV heads; the last layers may reuse earlier keys."""
    kinds = f.kinds("layer_types", f.layers, (SLIDING, FULL))
    if kinds is None:
        kinds = [SLIDING if (index + 1) % 6 else FULL for index in range(f.layers)]
        kinds[-1] = FULL
    shared = f.size("num_kv_shared_layers", default=0, least=0, most=f.layers)
    made: dict[tuple[str, bool], Mixer] = {}
    mixers = []
    for index, kind in enumerate(kinds):
        key = (kind, index < f.layers - shared)
        if key not in made:
            made[key] = _gemma_4_mixer(f, sliding=kind == SLIDING, caches=key[1])
        mixers.append(made[key])
    return mixers


def _gemma_4_mixer(f: Fields, *, sliding: bool, caches: bool) -> Mixer:
    bias, kv_heads = f.flag("attention_bias", default=False), heads_of(f)[1]
    one_projection = f.flag("attention_k_eq_v", default=False)
    if sliding:
        return grouped_query(
            f, head_norm=True, qkv_bias=bias, output_bias=bias, window=f.size("sliding_window"),
            key_dim=head_width(f), caches=caches,
        )  # fmt: skip
    return grouped_query(
        f, head_norm=True, qkv_bias=bias, output_bias=bias, caches=caches,
        key_dim=f.size("global_head_dim", default=512),
        kv_heads=f.size("num_global_key_value_heads", default=kv_heads) if one_projection else kv_heads,
        values_projected=not one_projection,
    )  # fmt: skip


def gemma_4_feed_forwards(f: Fields) -> list[FeedForward]:
    """A gated MLP, twice as wide in layers that reuse keys when `use_double_wide_mlp` is on; with experts
    beside it in the mixtures."""
    shared = f.size("num_kv_shared_layers", default=0, least=0, most=f.layers)
    narrow = gated(f)
    wide = narrow
    if f.flag("use_double_wide_mlp", default=False):
        wide = gated(f, width=2 * f.size("intermediate_size"))
    if f.flag("enable_moe_block", default=False):
        mixture = _gemma_4_experts(f)
        narrow, wide = (_joined(block, mixture) for block in (narrow, wide))
    return [narrow] * (f.layers - shared) + [wide] * shared


def _gemma_4_experts(f: Fields) -> FeedForward:
    count, width = f.size("num_experts", most=MAX_EXPERTS), f.size("moe_intermediate_size")
    hidden = f.hidden
    tensors: tuple[Tensor, ...] = (
        Tensor("router.proj.weight", Role.REPLICATED, (count, hidden)),
        Tensor("router.scale", Role.NORM, (hidden,)),
        Tensor("router.per_expert_scale", Role.NORM, (count,)),
        Tensor("experts.gate_up_proj", Role.EXPERT, (count, 2 * width, hidden), linear=True),
        Tensor("experts.down_proj", Role.EXPERT, (count, hidden, width), linear=True),
    )
    for name in (
        "post_feedforward_layernorm_1",
        "post_feedforward_layernorm_2",
        "pre_feedforward_layernorm_2",
    ):
        tensors += norm(name, hidden)
    active = f.size("top_k_experts", default=1) * width
    return FeedForward(tensors, (("columns of an expert", width),), active)


def _joined(dense: FeedForward, mixture: FeedForward) -> FeedForward:
    return FeedForward(dense.tensors + mixture.tensors, mixture.divisors, mixture.active_width)


def gemma_4_layer_extras(f: Fields) -> tuple[Tensor, ...]:
    """A scalar, and what mixes in the embedding of each layer."""
    tensors: tuple[Tensor, ...] = (Tensor("layer_scalar", Role.NORM, (1,), counted=False),)
    width = f.size("hidden_size_per_layer_input", default=0, least=0)
    if width:
        tensors += linear("per_layer_input_gate", Role.REPLICATED, width, f.hidden)
        tensors += linear("per_layer_projection", Role.REPLICATED, f.hidden, width)
        tensors += norm("post_per_layer_input_norm", f.hidden)
    return tensors


def gemma_4_outer_extras(f: Fields) -> tuple[Tensor, ...]:
    """The embedding of each layer."""
    width = f.size("hidden_size_per_layer_input", default=0, least=0)
    if not width:
        return ()
    vocab, columns = f.size("vocab_size_per_layer_input", default=f.size("vocab_size")), f.layers * width
    return (
        Tensor("model.embed_tokens_per_layer.weight", Role.EMBEDDING, (vocab, columns)),
        Tensor("model.per_layer_model_projection.weight", Role.EMBEDDING, (columns, f.hidden)),
        *norm("model.per_layer_projection_norm", width),
    )


# Nemotron-H ----------------------------------------------------------------------------------------------

NEMOTRON_MAMBA = Mamba2(
    prefix="mixer", heads="mamba_num_heads", head_dim="mamba_head_dim", state="ssm_state_size",
    groups="n_groups", kernel="conv_kernel", conv_bias="use_conv_bias", projection_bias="use_bias",
)  # fmt: skip
NEMOTRON_EXPERTS = Experts(
    prefix="mixer", count="n_routed_experts", width="moe_intermediate_size",
    projections=("up_proj", "down_proj"), correction_bias="gate.e_score_correction_bias",
    shared_width="moe_shared_expert_intermediate_size",
)  # fmt: skip
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def _nemotron_kinds(f: Fields) -> list[str]:
    pattern = f.text("hybrid_override_pattern")
    if not pattern:
        kinds = f.kinds("layers_block_type", f.layers, tuple(_LETTERS.values()))
        if kinds is None:
            raise FileUnreadable(f"{f.name}: hybrid_override_pattern: expected a letter for each layer")
        return kinds
    if len(pattern) != f.layers or not set(pattern) <= _LETTERS.keys():
        raise FileUnreadable(
            f"{f.name}: hybrid_override_pattern: expected {f.layers} letters of"
            f" {''.join(_LETTERS)}, found {pattern!r:.80}"
        )
    return [_LETTERS[letter] for letter in pattern]


def nemotron_mixers(f: Fields) -> list[Mixer]:
    """One block a layer: those that are no mixer have an empty one."""
    bias = f.flag("attention_bias", default=False)
    made = {
        "mamba": NEMOTRON_MAMBA.mixer(f),
        "attention": grouped_query(f, prefix="mixer", qkv_bias=bias, output_bias=bias),
    }
    return [made.get(kind, _NO_MIXER) for kind in _nemotron_kinds(f)]


def nemotron_feed_forwards(f: Fields) -> list[FeedForward]:
    if f.values.get("moe_latent_size") is not None:
        raise f.refuse("moe_latent_size", "experts on a latent are not read from config.json")
    kinds = _nemotron_kinds(f)
    made: dict[str, FeedForward] = {}
    if "moe" in kinds:
        made["moe"] = NEMOTRON_EXPERTS.feed_forward(f)
    if "mlp" in kinds:
        made["mlp"] = plain(
            f, up="mixer.up_proj", down="mixer.down_proj", width=f.size("intermediate_size"),
            bias=f.flag("mlp_bias", default=False),
        )  # fmt: skip
    return [made.get(kind, _NO_FEED_FORWARD) for kind in kinds]


_NO_MIXER = Mixer()
_NO_FEED_FORWARD = FeedForward()

# Granite 4 -----------------------------------------------------------------------------------------------

GRANITE_MAMBA = Mamba2(
    prefix="mamba", heads="mamba_n_heads", head_dim="mamba_d_head", state="mamba_d_state",
    groups="mamba_n_groups", kernel="mamba_d_conv", conv_bias="mamba_conv_bias",
    projection_bias="mamba_proj_bias",
)  # fmt: skip


def granite_hybrid_feed_forwards(f: Fields) -> list[FeedForward]:
    """Experts, when there are any, beside an MLP that every token passes."""
    shared, hidden = f.size("shared_intermediate_size"), f.hidden
    tensors = linear("shared_mlp.input_linear", Role.MLP, 2 * shared, hidden)
    tensors += linear("shared_mlp.output_linear", Role.MLP, hidden, shared)
    divisors = [("columns of the shared MLP", shared)]
    count, active = f.size("num_local_experts", default=0, least=0, most=MAX_EXPERTS), shared
    if count:
        width = f.size("intermediate_size")
        moe = "block_sparse_moe"
        tensors += (
            Tensor(f"{moe}.router.layer.weight", Role.REPLICATED, (count, hidden)),
            Tensor(f"{moe}.input_linear.weight", Role.EXPERT, (count, 2 * width, hidden)),
            Tensor(f"{moe}.output_linear.weight", Role.EXPERT, (count, hidden, width)),
        )
        divisors.append(("columns of an expert", width))
        active += f.size("num_experts_per_tok", default=2) * width
    return [FeedForward(tensors, tuple(divisors), active)] * f.layers
