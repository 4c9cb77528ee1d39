"""Matrices that wait for their weights, plain or quantized.

torch.nn's own classes fill what they make with random numbers; on the "meta" device, where a model is built
before it is read, that alone loads torch's compiler: seconds of start-up and 115 MiB (torch 2.11).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from plimsoll_worker.kernels import ops
from plimsoll_worker.kernels.matrix import Matrix, OneMatrix, QuantizedMatrix, StackedMatrix
from plimsoll_worker.layers.rmsnorm import RMSNorm
from plimsoll_worker.layers.waiting import waiting

QUANTIZED_PARTS = ("numbers", "scales", "minimums")
"""Names of the tensors of a quantized matrix, of which not every form has minimums."""


class Quantizable(nn.Module):
    """A weight that may be kept in fewer bits: its tensors are then registered as `numbers`, `scales` and
    `minimums`, and there is no `weight`."""

    def __init__(self, *shape: int, sensitive: bool = False) -> None:
        """shape: of the weight, (outputs, inputs), or (count, outputs, inputs) of several matrices."""
        super().__init__()
        self.sensitive = sensitive
        self.rows = shape[-2]
        """Of each matrix."""
        self.weight: nn.Parameter | None = waiting(*shape)
        self.quantized: QuantizedMatrix | None = None

    @property
    def undivided(self) -> OneMatrix:
        """What it keeps. Of several matrices the quantized ones lie one below the other."""
        if self.quantized is not None:
            return self.quantized
        assert self.weight is not None
        return self.weight

    def quantize(self, matrix: QuantizedMatrix) -> None:
        """Keep `matrix` in place of the weight, and count its bytes as parameters."""
        self.weight = None
        self.quantized = matrix
        for name in QUANTIZED_PARTS:
            tensor = getattr(matrix, name)
            if tensor is not None:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


class Linear(Quantizable):
    """x @ weightᵀ + bias; the weight is (outputs, inputs). One whose rows are kept in several ways has
    `parts`, each of which keeps some of them."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, sensitive: bool = False) -> None:
        """sensitive: never quantized, because its errors do more than those of others: a router's decide
        which experts run, the head's go straight into the logits."""
        super().__init__(outputs, inputs, sensitive=sensitive)
        self.bias = waiting(outputs) if bias else None
        self.parts: Sequence[Linear] | None = None

    @property
    def matrix(self) -> Matrix:
        """What is multiplied with."""
        if self.parts is not None:
            return StackedMatrix(tuple(part.undivided for part in self.parts))
        return self.undivided

    def divide(self, rows: Sequence[int]) -> None:
        """Keep so many rows after another in parts of their own, which wait for their weights."""
        assert self.weight is not None
        outputs, inputs = self.weight.shape
        assert sum(rows) == outputs, f"parts of {rows} rows of a matrix of {outputs}"
        with self.weight.device:
            self.parts = [Linear(inputs, height, bias=False) for height in rows]
        self.weight = None
        for index, part in enumerate(self.parts):
            self.add_module(f"part{index}", part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inputs) → (rows, outputs)."""
        return ops.linear(x, self.matrix, self.bias)

    def after(self, norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        """Of the norm of x: (rows, inputs) → (rows, outputs)."""
        return ops.norm_linear(x, norm.weight, norm.eps, self.matrix, self.bias, offset=norm.offset)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        """residual + scale * linear(x); `residual` (rows, outputs) is used up."""
        return ops.linear_add(x, self.matrix, residual, self.bias, scale=scale)


class Embedding(nn.Module):
    """A row of `weight` (vocabulary, width) for each token."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = waiting(vocabulary, width)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(tokens) → (tokens, width)."""
        return functional.embedding(token_ids, self.weight)
