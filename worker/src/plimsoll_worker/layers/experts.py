"""A mixture of experts: a router chooses a few of many gated MLPs for each token.

Every token's rows are sorted by expert, so that one grouped matrix product serves all of them with shapes
that depend on the number of tokens alone: nothing is read back from the device, and a step can be captured.
A loop over the experts that were hit was the alternative; it waits for the device once a layer.
"""

from __future__ import annotations

import torch
from torch import nn

from plimsoll_worker.config import Activation, ExpertsConfig, ModelConfig
from plimsoll_worker.kernels import ops
from plimsoll_worker.layers.linear import Linear, Quantizable
from plimsoll_worker.layers.rmsnorm import RMSNorm

SUMMED_AT_ONCE = 256
"""Tokens, or an eighth of a step's: in FP32, all experts' answers would be most of what a layer takes."""


class ExpertMatrices(Quantizable):
    """A matrix (outputs, inputs) of each expert of a layer: `weight` (experts, outputs, inputs)."""


class ExpertWeights(nn.Module):
    """The matrices of all experts of a layer."""

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.count = experts.count
        self.gate_up_proj = ExpertMatrices(experts.count, 2 * experts.width, config.hidden_size)
        self.down_proj = ExpertMatrices(experts.count, config.hidden_size, experts.width)


class SparseMLP(nn.Module):
    """Router and experts in place of one MLP (modeling_mixtral, modeling_qwen3_moe)."""

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.per_token = experts.per_token
        self.normalized = experts.normalized
        self.activation = config.activation
        self.gate = Linear(config.hidden_size, experts.count, bias=False, sensitive=True)
        self.experts = ExpertWeights(config, experts)

    def forward(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """Of the norm of x: (tokens, hidden) → (tokens, hidden)."""
        x = norm(x)
        probabilities = self.gate(x).softmax(dim=-1, dtype=torch.float32)
        shares, chosen = probabilities.topk(self.per_token, dim=-1)
        if self.normalized:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return experts_mlp(x, chosen, shares, self.experts, self.activation)

    def add_to(self, residual: torch.Tensor, norm: RMSNorm, scale: float) -> torch.Tensor:
        """residual + scale * forward(residual), (tokens, hidden)."""
        return residual + scale * self.forward(residual, norm)


def experts_mlp(
    x: torch.Tensor,
    chosen: torch.Tensor,
    shares: torch.Tensor,
    experts: ExpertWeights,
    activation: Activation,
) -> torch.Tensor:
    """Sum over each token's experts of share times MLP.

    x (tokens, hidden); chosen, shares (tokens, per_token) → (tokens, hidden), summed in FP32.
    """
    tokens, per_token = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    expert_of_row = chosen.flatten()[order]
    last_rows = torch.searchsorted(
        expert_of_row, torch.arange(experts.count, device=x.device), right=True
    ).to(torch.int32)
    inner = ops.grouped_linear(
        x, experts.gate_up_proj.undivided, last_rows, places=order // per_token, gated=activation
    )
    outputs = ops.grouped_linear(inner, experts.down_proj.undivided, last_rows)
    del inner
    # Back in the tokens' order, then summed: adding in place would sum in whatever order threads arrive.
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=x.device)
    back, out = back.view(tokens, per_token), torch.empty_like(x)
    step = max(SUMMED_AT_ONCE, -(-tokens // 8))
    for first in range(0, tokens, step):
        some = slice(first, first + step)
        out[some] = (outputs[back[some]] * shares[some, :, None]).sum(dim=1)
    return out
