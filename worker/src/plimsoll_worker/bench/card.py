"""What the card at hand can do: every figure of a benchmark is to be read beside these, from the same run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

GIB = 1024**3
COPY_BYTES = 4 * GIB
READ_BYTES = 8 * GIB
MATRIX = 8192
REPEATS = 5


def versions(device: torch.device) -> dict[str, str]:
    """Device, driver and libraries."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type != "cuda":
        return {"device": "CPU", **found}
    import pynvml
    import triton

    pynvml.nvmlInit()
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        **found,
    }


def rates(device: torch.device) -> dict[str, Any]:
    """Copy and read bandwidth, bytes a second, and matrix multiplication, operations a second; medians. Empty
    on a CPU."""
    if device.type != "cuda":
        return {}
    from plimsoll_worker.bench.read_rate import read_rate

    found = {
        "copyBytesPerSecond": round(_copy_rate(device)),
        "matmulFlopsPerSecond": round(_matmul_rate(device)),
        "readBytesPerSecond": round(read_rate(device, READ_BYTES, seconds)),
    }
    torch.cuda.empty_cache()
    return found


def _copy_rate(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds(lambda: target.copy_(source))


def _matmul_rate(device: torch.device) -> float:
    left, right = (torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * MATRIX**3 / seconds(lambda: left @ right)


def seconds(work: Callable[[], object]) -> float:
    """Median time of `work` on the device, after a run that does not count; by the clock where there is no
    GPU."""
    work()
    if not torch.cuda.is_available():
        return median(_clocked(work) for _ in range(REPEATS))
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return median(times)


def _clocked(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
