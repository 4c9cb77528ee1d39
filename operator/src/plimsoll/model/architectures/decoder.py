"""Dense decoders with grouped-query attention and a gated MLP: llama, and its kin that differ in a bias or a
norm.

One table names every tensor in both file formats and says how its shape follows from the hyper-parameters. It
serves three ends: the role of a stored tensor, the tensors that must be there, and the closed form for a
config.json alone.

Source of names and shapes: `modeling_llama.py`, `modeling_qwen2.py`, `modeling_qwen3.py` of transformers 5,
and `gguf-py/gguf/constants.py` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from plimsoll.model.facts import Role
from plimsoll.model.hyper_parameters import HyperParameters

Naming = Literal["safetensors", "gguf"]
_Width = Callable[[HyperParameters], int]


@dataclass(frozen=True)
class Slot:
    """One tensor that a model of the family has or may have."""

    name: str
    role: Role
    shape: tuple[int, ...]
    layer: int | None
    """Index of the layer; None for the model's outer tensors."""
    required: bool
    kept: bool = True
    """False: stored by some converters, computed by the engine (rotary frequencies)."""


@dataclass(frozen=True)
class _Projection:
    safetensors: str
    gguf: str
    role: Role
    rows: _Width
    columns: _Width
    bias_role: Role
    """A bias added before the reduction is divided like its matrix, one added after is held whole."""
    group: Literal["qkv", "output", "mlp"]


def _query(hp: HyperParameters) -> int:
    return hp.heads * hp.key_dim


def _output(hp: HyperParameters) -> int:
    return hp.heads * hp.value_dim


def _key(hp: HyperParameters) -> int:
    return hp.kv_heads * hp.key_dim


def _value(hp: HyperParameters) -> int:
    return hp.kv_heads * hp.value_dim


def _hidden(hp: HyperParameters) -> int:
    return hp.hidden


def _intermediate(hp: HyperParameters) -> int:
    return hp.intermediate


_Q, _KV, _MLP, _NORM = Role.ATTENTION_Q, Role.ATTENTION_KV, Role.MLP, Role.NORM
PROJECTIONS = (
    _Projection("self_attn.q_proj", "attn_q", _Q, _query, _hidden, _Q, "qkv"),
    _Projection("self_attn.k_proj", "attn_k", _KV, _key, _hidden, _KV, "qkv"),
    _Projection("self_attn.v_proj", "attn_v", _KV, _value, _hidden, _KV, "qkv"),
    _Projection("self_attn.o_proj", "attn_output", _Q, _hidden, _output, _NORM, "output"),
    _Projection("mlp.gate_proj", "ffn_gate", _MLP, _intermediate, _hidden, _MLP, "mlp"),
    _Projection("mlp.up_proj", "ffn_up", _MLP, _intermediate, _hidden, _MLP, "mlp"),
    _Projection("mlp.down_proj", "ffn_down", _MLP, _hidden, _intermediate, _NORM, "mlp"),
)
NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
HEAD_NORMS = (("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"))
OUTER: dict[Naming, tuple[str, str, str]] = {
    "safetensors": ("model.embed_tokens", "model.norm", "lm_head"),
    "gguf": ("token_embd", "output_norm", "output"),
}


@dataclass(frozen=True, kw_only=True)
class DecoderFamily:
    """What sets one family apart from llama."""

    name: str
    qkv_bias: bool = False
    """Query, key and value always carry a bias, the output projection never."""
    qk_norm: bool = False
    """Query and key heads are normed, each with one vector of head width."""
    default_window: int | None = None
    """Sliding window where config.json is silent. None: windows are off unless `use_sliding_window` is on."""
    default_kv_heads: int | None = None
    """What the configuration class fills in when config.json is silent; None: one per query head."""
    default_head_dim: int | None = None
    """None: hidden / heads."""

    def slots(self, hp: HyperParameters, naming: Naming) -> Iterator[Slot]:
        """Every tensor that a checkpoint may hold, the required ones marked."""
        embedding, norm, head = OUTER[naming]
        yield Slot(f"{embedding}.weight", Role.EMBEDDING, (hp.vocab, hp.hidden), None, required=True)
        yield Slot(f"{norm}.weight", Role.NORM, (hp.hidden,), None, required=True)
        yield Slot(f"{head}.weight", Role.HEAD, (hp.vocab, hp.hidden), None, required=not hp.tied)
        if naming == "gguf":
            # Frequency factors of llama3's long rope, written by the converter.
            yield Slot("rope_freqs.weight", Role.NORM, (), None, required=False, kept=False)
        for layer in range(hp.layers):
            yield from self._layer(hp, naming, layer)

    def _layer(self, hp: HyperParameters, naming: Naming, layer: int) -> Iterator[Slot]:
        gguf = naming == "gguf"
        prefix = f"blk.{layer}" if gguf else f"model.layers.{layer}"
        for projection in PROJECTIONS:
            name = f"{prefix}.{projection.gguf if gguf else projection.safetensors}"
            rows, columns = projection.rows(hp), projection.columns(hp)
            yield Slot(f"{name}.weight", projection.role, (rows, columns), layer, required=True)
            yield Slot(
                f"{name}.bias", projection.bias_role, (rows,), layer, required=self._biased(hp, projection)
            )
        for safetensors_name, gguf_name in NORMS:
            name = f"{prefix}.{gguf_name if gguf else safetensors_name}.weight"
            yield Slot(name, Role.NORM, (hp.hidden,), layer, required=True)
        if self.qk_norm:
            for safetensors_name, gguf_name in HEAD_NORMS:
                name = f"{prefix}.{gguf_name if gguf else safetensors_name}.weight"
                yield Slot(name, Role.NORM, (hp.key_dim,), layer, required=True)
        if not gguf:
            # Llama-2 era files store them; every engine computes them.
            yield Slot(
                f"{prefix}.self_attn.rotary_emb.inv_freq", Role.NORM, (), layer, required=False, kept=False
            )

    def _biased(self, hp: HyperParameters, projection: _Projection) -> bool:
        match projection.group:
            case "qkv":
                return self.qkv_bias or hp.attention_bias
            case "output":
                return hp.attention_bias and not self.qkv_bias
            case "mlp":
                return hp.mlp_bias
