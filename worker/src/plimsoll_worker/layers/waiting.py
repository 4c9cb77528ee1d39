"""Parameters that wait for their contents."""

from __future__ import annotations

import torch
from torch import nn


def waiting(*shape: int) -> nn.Parameter:
    """A parameter without contents."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)
