"""Image towers: what they add to the files. A text engine leaves them there, so only their sum matters.

Shapes as in `modeling_siglip.py`, `modeling_gemma4.py`, `modeling_qwen2_vl.py`, `modeling_qwen3_5.py` and
`modeling_kimi_k25.py` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plimsoll.model.blueprint import EXPERT, Tensor
from plimsoll.model.facts import Role
from plimsoll.model.fields import MAX_LAYERS, Fields

PREFIXES = (
    "vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "mm_projector.", "embed_vision.",
    "audio_tower.", "embed_audio.",
)  # fmt: skip
"""Whatever lies under these names belongs to a tower, its own shapes followed or not."""


def _tensor(name: str, *shape: int, copies: int = 1) -> Tensor:
    return Tensor(name, Role.VISION, shape, copies=copies, required=False)


def _pair(name: str, rows: int, *columns: int, copies: int = 1) -> Iterator[Tensor]:
    yield _tensor(f"{name}.weight", rows, *columns, copies=copies)
    yield _tensor(f"{name}.bias", rows, copies=copies)


def _block(
    prefix: str, layers: int, hidden: int, inner: int, *, projections: Sequence[tuple[str, int]], mlp: str
) -> Iterator[Tensor]:
    """A transformer block with biases and two layer norms, `layers` times."""
    for name, rows in projections:
        yield from _pair(f"{prefix}.{name}", rows, hidden, copies=layers)
    yield from _pair(f"{prefix}.{mlp}fc1", inner, hidden, copies=layers)
    yield from _pair(f"{prefix}.{mlp}fc2", hidden, inner, copies=layers)
    for norm in ("norm1", "norm2"):
        yield from _pair(f"{prefix}.{norm}", hidden, copies=layers)


def siglip(f: Fields, text_hidden: int) -> tuple[Tensor, ...]:
    """Gemma 3: SigLIP and a projection to the text width."""
    hidden, inner = f.size("hidden_size", default=1152), f.size("intermediate_size", default=4304)
    layers = f.size("num_hidden_layers", default=27, most=MAX_LAYERS)
    patch, image = f.size("patch_size", default=14), f.size("image_size", default=896)
    root = "vision_tower.vision_model"
    attention = tuple((f"self_attn.{name}", hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
    return (
        *_pair(f"{root}.embeddings.patch_embedding", hidden, 3, patch, patch),
        _tensor(f"{root}.embeddings.position_embedding.weight", (image // patch) ** 2, hidden),
        *_block(f"{root}.encoder.layers.{EXPERT}", layers, hidden, inner, projections=attention, mlp="mlp."),
        *_pair(f"{root}.post_layernorm", hidden),
        _tensor("multi_modal_projector.mm_input_projection_weight", hidden, text_hidden),
        _tensor("multi_modal_projector.mm_soft_emb_norm.weight", hidden),
    )


def gemma_4(f: Fields, text_hidden: int) -> tuple[Tensor, ...]:
    """Gemma 4: a gated tower with two tables of positions."""
    hidden, inner = f.size("hidden_size", default=768), f.size("intermediate_size", default=3072)
    layers = f.size("num_hidden_layers", default=16, most=MAX_LAYERS)
    heads, head = f.size("num_attention_heads", default=12), f.size("head_dim", default=64)
    kv_heads, patch = f.size("num_key_value_heads", default=heads), f.size("patch_size", default=16)
    positions = f.size("position_embedding_size", default=10_240)
    block, width = f"vision_tower.encoder.layers.{EXPERT}", heads * head
    matrices = {
        "self_attn.q_proj": (width, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )  # fmt: skip
    return (
        _tensor("vision_tower.patch_embedder.position_embedding_table", 2, positions, hidden),
        _tensor("vision_tower.patch_embedder.input_proj.weight", hidden, 3 * patch * patch),
        *(_tensor(f"{block}.{name}.linear.weight", *s, copies=layers) for name, s in matrices.items()),
        *(_tensor(f"{block}.self_attn.{n}_norm.weight", head, copies=layers) for n in ("q", "k")),
        *(_tensor(f"{block}.{name}.weight", hidden, copies=layers) for name in norms),
        _tensor("embed_vision.embedding_projection.weight", text_hidden, hidden),
    )


def qwen_2(f: Fields, text_hidden: int) -> tuple[Tensor, ...]:
    """Qwen2-VL: its `hidden_size` is the text width, `embed_dim` its own."""
    hidden, layers = f.size("embed_dim", default=1280), f.size("depth", default=32, most=MAX_LAYERS)
    inner = hidden * f.size("mlp_ratio", default=4)
    patch, frames = f.size("patch_size", default=14), f.size("temporal_patch_size", default=2)
    merged = hidden * f.size("spatial_merge_size", default=2) ** 2
    attention = (("attn.qkv", 3 * hidden), ("attn.proj", hidden))
    return (
        _tensor("visual.patch_embed.proj.weight", hidden, 3, frames, patch, patch),
        *_block(f"visual.blocks.{EXPERT}", layers, hidden, inner, projections=attention, mlp="mlp."),
        *_pair("visual.merger.ln_q", hidden),
        *_pair("visual.merger.mlp.0", merged, merged),
        *_pair("visual.merger.mlp.2", text_hidden, merged),
    )


def qwen_3_5(f: Fields, text_hidden: int) -> tuple[Tensor, ...]:
    """Qwen3.5: learned positions, biases everywhere."""
    hidden, inner = f.size("hidden_size", default=1152), f.size("intermediate_size", default=4304)
    layers = f.size("depth", default=27, most=MAX_LAYERS)
    patch, frames = f.size("patch_size", default=16), f.size("temporal_patch_size", default=2)
    merged = hidden * f.size("spatial_merge_size", default=2) ** 2
    attention = (("attn.qkv", 3 * hidden), ("attn.proj", hidden))
    return (
        *_pair("visual.patch_embed.proj", hidden, 3, frames, patch, patch),
        _tensor("visual.pos_embed.weight", f.size("num_position_embeddings", default=2304), hidden),
        *_block(f"visual.blocks.{EXPERT}", layers, hidden, inner, projections=attention, mlp="mlp.linear_"),
        *_pair("visual.merger.norm", hidden),
        *_pair("visual.merger.linear_fc1", merged, merged),
        *_pair("visual.merger.linear_fc2", text_hidden, merged),
    )


def kimi(f: Fields, text_hidden: int) -> tuple[Tensor, ...]:
    """Kimi-K2.5: MoonViT with a patch merger."""
    hidden = f.size("vt_hidden_size", default=f.size("hidden_size", default=1152))
    inner = f.size("vt_intermediate_size", default=f.size("intermediate_size", default=4304))
    layers = f.size("vt_num_hidden_layers", default=27, most=MAX_LAYERS)
    patch, merged = f.size("patch_size", default=14), 4 * hidden
    height, width = f.size("init_pos_emb_height", default=64), f.size("init_pos_emb_width", default=64)
    attention = (("wqkv", 3 * hidden), ("wo", hidden))
    return (
        *_pair("vision_tower.patch_embed.proj", hidden, 3, patch, patch),
        _tensor("vision_tower.patch_embed.pos_emb.weight", height, width, hidden),
        *_block(
            f"vision_tower.encoder.blocks.{EXPERT}", layers, hidden, inner, projections=attention, mlp="mlp."
        ),
        *_pair("vision_tower.encoder.final_layernorm", hidden),
        *_pair("mm_projector.pre_norm", hidden),
        *_pair("mm_projector.proj.0", merged, merged),
        *_pair("mm_projector.proj.2", text_hidden, merged),
    )
