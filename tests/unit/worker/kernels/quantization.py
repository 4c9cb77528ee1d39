"""Random matrices of every precision, as a kernel's test takes them."""

from __future__ import annotations

import torch

from plimsoll_worker.kernels.matrix import FP8_BLOCK, QuantizedMatrix, pack_int4
from plimsoll_worker.launch.precision import Precision

KINDS = (
    "INT8",
    "INT8 group 16",
    "INT8 group 32",
    "INT4 group 32",
    "INT4 group 128",
    "FP8",
    "FP8 blocks",
)


def random_matrix(
    kind: str, outputs: int, inputs: int, dtype: torch.dtype, device: str = "cpu"
) -> QuantizedMatrix:
    """Weights of about 1, each scale its own."""
    precision, *words = kind.split()
    group = int(words[-1]) if words[:1] == ["group"] else None
    minimums = None

    def near(size: float, *shape: int) -> torch.Tensor:
        return size * (0.5 + torch.rand(shape, device=device))

    if precision == "INT8":
        numbers = torch.randint(-128, 128, (outputs, inputs), device=device).to(torch.int8)
        # Scales of groups may be of any type: those of GGUF's Q8_0 are FP16 whatever is computed in.
        scales = near(1 / 64, outputs, inputs // group).half() if group else near(1 / 64, outputs).to(dtype)
    elif precision == "INT4":
        assert group is not None
        groups = -(-inputs // group)
        numbers = pack_int4(torch.randint(0, 16, (outputs, inputs), device=device))
        scales, minimums = near(0.2, outputs, groups).to(dtype), -near(1.5, outputs, groups).to(dtype)
    else:
        numbers = (
            torch.randn(outputs, inputs, device=device).mul_(100).clamp_(-448, 448).to(torch.float8_e4m3fn)
        )
        shape = [outputs] if not words else [-(-size // FP8_BLOCK) for size in (outputs, inputs)]
        scales = near(0.01, *shape)
    return QuantizedMatrix(Precision(precision), numbers, scales, minimums, group, dtype)
