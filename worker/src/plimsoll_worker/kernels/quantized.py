"""Linear layers with weights of fewer bits on a GPU: which kernel takes how many rows."""

from __future__ import annotations

from torch import Tensor

from plimsoll_worker.kernels import norm, reference
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.reference import Activation


def quantized_linear(
    x: Tensor,
    weight: QuantizedMatrix,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    gated: Activation | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """As `few_rows.fused_linear`, for any number of rows."""
    if norm_weight is not None:
        x = norm.rms_norm(x, norm_weight, eps, offset=offset)
    out = reference.linear(x, weight, bias)
    if gated is not None:
        out = norm.gated_activation(out, gated)
    return out if residual is None else residual.add_(out, alpha=scale)
