"""Layers that keep a state instead of keys: Mamba 1 and 2, and the gated delta net of Qwen3-Next.

A state is what one sequence costs, however long it is: the convolution's last inputs (kernel − 1 of them) and
the state matrix. Types as vLLM's `MambaStateDtypeCalculator` keeps them; a delta net's matrix is FP32.

Source of names and shapes: `modeling_jamba.py`, `modeling_bamba.py`, `modeling_nemotron_h.py`,
`modeling_qwen3_next.py` and `modeling_qwen3_5.py` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.model.architectures.attention import linear, norm
from plimsoll.model.blueprint import Mixer, Tensor
from plimsoll.model.facts import Role
from plimsoll.model.fields import Fields

_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def mamba_1(f: Fields, prefix: str = "mamba") -> Mixer:
    """Mamba as Jamba has it, with norms on Δ, B and C."""
    hidden, state, kernel = f.hidden, f.size("mamba_d_state", default=16), f.size("mamba_d_conv", default=4)
    inner = hidden * f.size("mamba_expand", default=2)
    rank = -(-hidden // 16) if f.values.get("mamba_dt_rank") in (None, "auto") else f.size("mamba_dt_rank")
    bias = f.flag("mamba_proj_bias", default=False)
    tensors = linear(f"{prefix}.in_proj", Role.RECURRENT, 2 * inner, hidden, bias=bias)
    tensors += _convolution(f"{prefix}.conv1d", inner, kernel, f.flag("mamba_conv_bias", default=True))
    tensors += linear(f"{prefix}.x_proj", Role.RECURRENT, rank + 2 * state, inner)
    tensors += linear(f"{prefix}.dt_proj", Role.RECURRENT, inner, rank, bias=True)
    tensors += linear(f"{prefix}.out_proj", Role.RECURRENT, hidden, inner, bias=bias, bias_role=Role.NORM)
    tensors += (
        Tensor(f"{prefix}.A_log", Role.NORM, (inner, state)),
        Tensor(f"{prefix}.D", Role.NORM, (inner,)),
    )
    tensors += norm(f"{prefix}.dt_layernorm", rank)
    tensors += norm(f"{prefix}.b_layernorm", state) + norm(f"{prefix}.c_layernorm", state)
    states = (((kernel - 1) * inner, ""), (inner * state, ""))
    return Mixer(tensors, states=states, divisors=(("columns of the recurrent layers", inner),))


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """The names of one family's Mamba-2 fields."""

    prefix: str
    heads: str
    head_dim: str
    state: str
    groups: str
    kernel: str
    conv_bias: str
    projection_bias: str

    def mixer(self, f: Fields) -> Mixer:
        """Mamba-2 (arXiv 2405.21060): x, z, B, C and Δ from one projection."""
        heads, groups = f.size(self.heads), f.size(self.groups, default=1)
        hidden, state, kernel = f.hidden, f.size(self.state), f.size(self.kernel, default=4)
        expanded = f.hidden * f.size("mamba_expand", default=2)
        automatic = f.values.get(self.head_dim) in (None, "auto")
        inner = heads * (max(1, expanded // heads) if automatic else f.size(self.head_dim))
        convolved = inner + 2 * groups * state
        bias, name = f.flag(self.projection_bias, default=False), self.prefix
        tensors = linear(f"{name}.in_proj", Role.RECURRENT, inner + convolved + heads, hidden, bias=bias)
        tensors += _convolution(f"{name}.conv1d", convolved, kernel, f.flag(self.conv_bias, default=True))
        tensors += linear(f"{name}.out_proj", Role.RECURRENT, hidden, inner, bias=bias, bias_role=Role.NORM)
        tensors += tuple(Tensor(f"{name}.{part}", Role.NORM, (heads,)) for part in ("A_log", "D", "dt_bias"))
        tensors += norm(f"{name}.norm", inner)
        kept = _TYPES.get(f.text("mamba_ssm_cache_dtype"), "")
        states = (((kernel - 1) * convolved, ""), (inner * state, kept))
        return Mixer(tensors, states=states, divisors=(("heads of the recurrent layers", heads),))


def _convolution(name: str, channels: int, kernel: int, bias: bool) -> tuple[Tensor, ...]:
    weight = Tensor(f"{name}.weight", Role.RECURRENT, (channels, 1, kernel))
    return (weight, Tensor(f"{name}.bias", Role.RECURRENT, (channels,))) if bias else (weight,)


def gated_delta_net(f: Fields, *, split: bool) -> Mixer:
    """Linear attention with a gated delta rule (arXiv 2412.06464). `split`: q, k, v apart from z, b and a, as
    Qwen3.5 stores them."""
    keys, values = f.size("linear_num_key_heads"), f.size("linear_num_value_heads")
    key_dim, value_dim = f.size("linear_key_head_dim"), f.size("linear_value_head_dim")
    kernel, hidden, name = f.size("linear_conv_kernel_dim", default=4), f.hidden, "linear_attn"
    inner, convolved = values * value_dim, 2 * keys * key_dim + values * value_dim
    projections = (
        (("in_proj_qkv", convolved), ("in_proj_z", inner), ("in_proj_b", values), ("in_proj_a", values))
        if split
        else (("in_proj_qkvz", convolved + inner), ("in_proj_ba", 2 * values))
    )
    tensors: tuple[Tensor, ...] = ()
    for part, rows in projections:
        tensors += linear(f"{name}.{part}", Role.RECURRENT, rows, hidden)
    tensors += _convolution(f"{name}.conv1d", convolved, kernel, bias=False)
    tensors += linear(f"{name}.out_proj", Role.RECURRENT, hidden, inner)
    tensors += tuple(Tensor(f"{name}.{part}", Role.NORM, (values,)) for part in ("A_log", "dt_bias"))
    tensors += norm(f"{name}.norm", value_dim)
    kept = _TYPES.get(f.text("mamba_ssm_dtype", "float32"), "F32")
    states = (((kernel - 1) * convolved, ""), (values * key_dim * value_dim, kept))
    divisors = (("key heads of the linear layers", keys), ("value heads of the linear layers", values))
    return Mixer(tensors, states=states, divisors=divisors)
