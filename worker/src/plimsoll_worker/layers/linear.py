"""Matrices that wait for their weights.

torch.nn's own classes fill what they make with random numbers; on the "meta" device, where a model is built
before it is read, that alone loads torch's compiler: seconds of start-up and 115 MiB (torch 2.11).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Module):
    """x @ weightᵀ + bias; the weight is (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs)."""
        return functional.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """A row of `weight` (vocabulary, width) for each token."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width), requires_grad=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(tokens) → (tokens, width)."""
        return functional.embedding(token_ids, self.weight)
