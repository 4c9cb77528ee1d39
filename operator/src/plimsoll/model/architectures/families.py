"""One row a family: which blocks it is built of, and what its configuration class fills in.

Every row is held against the parameters that `transformers` builds from the same hyper-parameters
(tests/unit/model/test_against_transformers.py). Sources: `configuration_*.py` and `modeling_*.py` of
transformers 5.23; tensor names are those of the published checkpoints.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from plimsoll.model.architectures import peculiar, vision
from plimsoll.model.architectures.attention import grouped_query, latent
from plimsoll.model.architectures.decoder import Decoder
from plimsoll.model.architectures.feed_forward import Experts, gated, gpt_oss, plain
from plimsoll.model.architectures.layouts import (
    after_first,
    alternating,
    attends,
    attention,
    everywhere,
    interleaved,
    linear_but_every_fourth,
    sparse,
    stepped,
    switched,
    uniform,
)
from plimsoll.model.architectures.prediction import as_last_layers, beside_the_model
from plimsoll.model.architectures.recurrent import gated_delta_net, mamba_1
from plimsoll.model.blueprint import FeedForward
from plimsoll.model.fields import Fields


def _biased(f: Fields, **more: Any) -> dict[str, Any]:
    """All four projections carry a bias when `attention_bias` says so."""
    bias = f.flag("attention_bias", default=False)
    return {"qkv_bias": bias, "output_bias": bias, **more}


def _mlp(f: Fields) -> FeedForward:
    return gated(f, bias=f.flag("mlp_bias", default=False))


def _qwen(_: Fields) -> dict[str, Any]:
    return {"qkv_bias": True}


LLAMA = Decoder(mixers=attention(options=_biased), feed_forwards=everywhere(_mlp))
QWEN2 = Decoder(
    mixers=attention(switched, _qwen),
    feed_forwards=everywhere(gated),
    defaults={"num_key_value_heads": 32},
)
MIXTRAL_EXPERTS = Experts(
    prefix="block_sparse_moe", count="num_local_experts", width="intermediate_size",
    projections=("w1", "w3", "w2"),
)  # fmt: skip
QWEN_EXPERTS = Experts(
    count="num_experts", width="moe_intermediate_size", shared="shared_expert",
    shared_width="shared_expert_intermediate_size", shared_gate="shared_expert_gate",
)  # fmt: skip
QWEN3_EXPERTS = Experts(count="num_experts", width="moe_intermediate_size")
QWEN3_5_EXPERTS = Experts(
    count="num_experts", width="moe_intermediate_size", shared="shared_expert", stacked=True,
    shared_width="shared_expert_intermediate_size", shared_gate="shared_expert_gate",
    projections=("experts.gate_up_proj", "experts.down_proj"),
)  # fmt: skip
DEEPSEEK_V2_EXPERTS = Experts(
    count="n_routed_experts", width="moe_intermediate_size", shared_count="n_shared_experts"
)
DEEPSEEK_EXPERTS = Experts(
    count="n_routed_experts", width="moe_intermediate_size", shared_count="n_shared_experts",
    correction_bias="gate.e_score_correction_bias",
)  # fmt: skip
_MLA = {"num_key_value_heads": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
DEEPSEEK_V3 = Decoder(
    mixers=everywhere(latent),
    feed_forwards=sparse(DEEPSEEK_EXPERTS, gated, after_first),
    defaults={
        **_MLA, "q_lora_rank": 1536, "kv_lora_rank": 512, "n_routed_experts": 256, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "num_experts_per_tok": 8,
    },
    prediction=as_last_layers("num_nextn_predict_layers"),
)  # fmt: skip
GEMMA_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
GEMMA3 = Decoder(
    mixers=attention(interleaved(6), partial(_biased, head_norm=True)),
    feed_forwards=everywhere(gated),
    norms=GEMMA_NORMS,
    tied=True,
    tower=vision.siglip,
    defaults={
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131_072, "sliding_window": 4096, "hidden_size": 2304,
        "intermediate_size": 9216, "num_hidden_layers": 26,
    },
)  # fmt: skip
GEMMA4 = Decoder(
    mixers=peculiar.gemma_4_mixers,
    feed_forwards=peculiar.gemma_4_feed_forwards,
    norms=GEMMA_NORMS,
    layer_extras=peculiar.gemma_4_layer_extras,
    outer_extras=peculiar.gemma_4_outer_extras,
    tied=True,
    tower=vision.gemma_4,
    defaults={
        "vocab_size": 262_144, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131_072, "sliding_window": 512, "hidden_size_per_layer_input": 256,
    },
)  # fmt: skip
_DELTA_NET = {
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "num_key_value_heads": 2, "head_dim": 256,
}  # fmt: skip
_GATED_ATTENTION = partial(_biased, head_norm=True, gated=True)


def _attend(f: Fields) -> Any:
    return grouped_query(f, **_GATED_ATTENTION(f))


QWEN3_5 = Decoder(
    mixers=alternating(linear_but_every_fourth, _attend, partial(gated_delta_net, split=True)),
    feed_forwards=everywhere(gated),
    defaults={**_DELTA_NET, "num_key_value_heads": 4},
    prediction=beside_the_model("mtp_num_hidden_layers", 0),
    tower=vision.qwen_3_5,
)
QWEN3_5_MOE = Decoder(
    mixers=QWEN3_5.mixers,
    feed_forwards=everywhere(QWEN3_5_EXPERTS.feed_forward),
    defaults=_DELTA_NET,
    prediction=beside_the_model("mtp_num_hidden_layers", 0),
    tower=vision.qwen_3_5,
    dense_width="moe_intermediate_size",
)
FALCON = Decoder(
    mixers=peculiar.falcon_mixers,
    feed_forwards=peculiar.falcon_feed_forwards,
    layer_extras=peculiar.falcon_norms,
    norms=(),
    norm_bias=True,
    tied=True,
    stores_tied_head=True,
    prefix="transformer.h.{}.",
    embedding="transformer.word_embeddings",
    last_norm="transformer.ln_f",
    renamed={"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"},
    dense_width="ffn_hidden_size",
    derived=lambda f: {"ffn_hidden_size": 4 * f.hidden},
    defaults={"max_position_embeddings": 2048},
)

FAMILIES: dict[str, Decoder] = {
    "llama": LLAMA,
    "mistral": Decoder(
        mixers=attention(uniform),
        feed_forwards=everywhere(gated),
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": QWEN2,
    "qwen2_vl": Decoder(
        mixers=QWEN2.mixers, feed_forwards=QWEN2.feed_forwards, defaults=QWEN2.defaults, tower=vision.qwen_2
    ),
    "qwen3": Decoder(
        mixers=attention(switched, partial(_biased, head_norm=True)),
        feed_forwards=everywhere(gated),
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    "phi3": Decoder(
        # Its `sliding_window` is one token short of the context (or longer than it): nothing to bound.
        mixers=attention(options=lambda _: {"fused": "qkv_proj"}),
        feed_forwards=everywhere(partial(gated, fused="gate_up_proj")),
    ),
    "gemma2": Decoder(
        mixers=attention(interleaved(2), _biased),
        feed_forwards=everywhere(gated),
        norms=GEMMA_NORMS,
        tied=True,
        defaults={
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
            "max_position_embeddings": 8192, "vocab_size": 256_000,
        },
    ),
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "gemma4": GEMMA4,
    "gemma4_text": GEMMA4,
    "mixtral": Decoder(
        mixers=attention(uniform),
        feed_forwards=everywhere(MIXTRAL_EXPERTS.feed_forward),
        defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": Decoder(
        mixers=attention(switched, lambda f: {"qkv_bias": f.flag("qkv_bias", default=True)}),
        feed_forwards=sparse(QWEN_EXPERTS, gated, stepped),
        defaults={"num_key_value_heads": 16},
    ),
    "qwen3_moe": Decoder(
        mixers=attention(switched, partial(_biased, head_norm=True)),
        feed_forwards=sparse(QWEN3_EXPERTS, gated, stepped),
        defaults={"num_key_value_heads": 4},
        renamed={"num_experts": "num_local_experts"},  # as transformers 5 writes it
    ),
    "gpt_oss": Decoder(
        mixers=attention(interleaved(2), partial(_biased, sinks=True)),
        feed_forwards=everywhere(gpt_oss),
        defaults={"attention_bias": True, "head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
    ),
    "deepseek_v2": Decoder(
        mixers=everywhere(latent),
        feed_forwards=sparse(DEEPSEEK_V2_EXPERTS, gated, after_first),
        defaults={**_MLA, "q_lora_rank": 1536, "kv_lora_rank": 512},
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,
    "kimi_k25": Decoder(
        mixers=DEEPSEEK_V3.mixers,
        feed_forwards=DEEPSEEK_V3.feed_forwards,
        defaults=DEEPSEEK_V3.defaults,
        prediction=DEEPSEEK_V3.prediction,
        tower=vision.kimi,
    ),
    "deepseek_v32": Decoder(
        mixers=peculiar.indexed_mixers,
        feed_forwards=DEEPSEEK_V3.feed_forwards,
        defaults={**DEEPSEEK_V3.defaults, "index_n_heads": 64, "index_head_dim": 128},
        prediction=DEEPSEEK_V3.prediction,
    ),
    "glm_moe_dsa": Decoder(
        mixers=peculiar.indexed_mixers,
        feed_forwards=DEEPSEEK_V3.feed_forwards,
        defaults={**DEEPSEEK_V3.defaults, "index_n_heads": 32, "index_head_dim": 128},
        prediction=as_last_layers("num_nextn_predict_layers", own_ends=False),
    ),
    "glm4": Decoder(
        mixers=attention(options=lambda f: {"qkv_bias": f.flag("attention_bias", default=True)}),
        feed_forwards=everywhere(partial(gated, fused="gate_up_proj")),
        norms=(
            "input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm",
        ),
        defaults={"num_key_value_heads": 2, "head_dim": 128},
    ),
    "glm4_moe": Decoder(
        mixers=attention(
            options=lambda f: {
                "qkv_bias": f.flag("attention_bias", default=False),
                "head_norm": f.flag("use_qk_norm", default=False),
            }
        ),
        feed_forwards=sparse(DEEPSEEK_EXPERTS, gated, after_first),
        defaults={"num_key_value_heads": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
        prediction=as_last_layers("num_nextn_predict_layers"),
    ),
    "granite": LLAMA,
    "falcon": FALCON,
    "RefinedWebModel": FALCON,
    "RefinedWeb": FALCON,
    "olmo2": Decoder(
        mixers=attention(options=partial(_biased, wide_norm=True)),
        feed_forwards=everywhere(gated),
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "cohere2": Decoder(
        mixers=attention(interleaved(4), _biased),
        feed_forwards=everywhere(gated),
        norms=("input_layernorm",),
        tied=True,
        defaults={"sliding_window": 4096},
    ),
    "starcoder2": Decoder(
        mixers=attention(
            uniform, lambda f: dict.fromkeys(("qkv_bias", "output_bias"), f.flag("use_bias", default=True))
        ),
        feed_forwards=everywhere(
            lambda f: plain(
                f, up="mlp.c_fc", down="mlp.c_proj", width=f.size("intermediate_size"),
                bias=f.flag("use_bias", default=True),
            )
        ),
        norm_bias=True,
        tied=True,
        defaults={"num_key_value_heads": 2},
    ),
    "stablelm": Decoder(
        mixers=attention(options=lambda f: {"qkv_bias": f.flag("use_qkv_bias", default=False)}),
        feed_forwards=everywhere(gated),
        norms=("input_layernorm",),
        norm_bias=True,
        layer_extras=peculiar.stablelm_norms,
        defaults={"num_key_value_heads": 32},
    ),
    "qwen3_next": Decoder(
        mixers=alternating(linear_but_every_fourth, _attend, partial(gated_delta_net, split=False)),
        feed_forwards=sparse(QWEN_EXPERTS, gated, stepped),
        defaults={**_DELTA_NET, "num_experts": 512, "num_experts_per_tok": 10},
        # The checkpoints hold one such layer, their config.json does not say so.
        prediction=beside_the_model("num_nextn_predict_layers", 1),
    ),
    "qwen3_5": QWEN3_5,
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_moe": QWEN3_5_MOE,
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "granitemoehybrid": Decoder(
        mixers=alternating(
            attends,
            lambda f: grouped_query(f, **_biased(f)),
            peculiar.GRANITE_MAMBA.mixer,
        ),
        feed_forwards=peculiar.granite_hybrid_feed_forwards,
        dense_width="shared_intermediate_size",
    ),
    "jamba": Decoder(
        mixers=alternating(
            lambda f, i: i % f.size("attn_layer_period", default=8)
            == f.size("attn_layer_offset", default=4, least=0),
            grouped_query,
            mamba_1,
        ),
        feed_forwards=sparse(
            Experts(prefix="feed_forward", count="num_experts", width="intermediate_size", router="router"),
            partial(gated, prefix="feed_forward"),
            lambda f, i: f.size("num_experts", default=16) > 1
            and i % f.size("expert_layer_period", default=2)
            == f.size("expert_layer_offset", default=1, least=0),
        ),
        norms=("input_layernorm", "pre_ff_layernorm"),
        last_norm="model.final_layernorm",
        defaults={"num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2},
    ),
    "nemotron_h": Decoder(
        mixers=peculiar.nemotron_mixers,
        feed_forwards=peculiar.nemotron_feed_forwards,
        norms=("norm",),
        prefix="backbone.layers.{}.",
        embedding="backbone.embeddings",
        last_norm="backbone.norm_f",
        defaults={"num_key_value_heads": 8, "head_dim": 128},
    ),
    "minimax_m2": Decoder(
        mixers=attention(options=lambda _: {"wide_norm": True}),
        feed_forwards=everywhere(
            Experts(
                prefix="block_sparse_moe", count="num_local_experts", width="intermediate_size",
                projections=("w1", "w3", "w2"), correction_bias="e_score_correction_bias",
                router_dtype="F32",
            ).feed_forward
        ),
        defaults={"head_dim": 128, "num_key_value_heads": 8},
    ),
}  # fmt: skip
