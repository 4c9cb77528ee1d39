"""RMS normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import nn

from plimsoll_worker.kernels import ops
from plimsoll_worker.layers.waiting import waiting


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset) over the last dimension."""

    def __init__(self, width: int, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = waiting(width)
        self.eps = eps
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, width) → (rows, width)."""
        return ops.rms_norm(x, self.weight, self.eps, offset=self.offset)
