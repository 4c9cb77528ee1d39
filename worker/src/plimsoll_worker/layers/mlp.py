"""Gated feed-forward blocks (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import torch
from torch import nn

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.kernels import ops
from plimsoll_worker.layers.linear import Linear
from plimsoll_worker.layers.rmsnorm import RMSNorm


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)); gate and up are one matrix, in this order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width, bias = config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(config.hidden_size, 2 * width, bias=bias)
        self.down_proj = Linear(width, config.hidden_size, bias=bias)

    def forward(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """Of the norm of x: (tokens, hidden) → (tokens, hidden)."""
        out: torch.Tensor = self.down_proj(self._active(x, norm))
        return out

    def add_to(self, residual: torch.Tensor, norm: RMSNorm, scale: float) -> torch.Tensor:
        """residual + scale * forward(residual); `residual` (tokens, hidden) is used up."""
        return self.down_proj.add_to(residual, self._active(residual, norm), scale)

    def _active(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        linear = self.gate_up_proj
        return ops.norm_gate_up(
            x, norm.weight, norm.eps, linear.matrix, self.activation, linear.bias, offset=norm.offset
        )
