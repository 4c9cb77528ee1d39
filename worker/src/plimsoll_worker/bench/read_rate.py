"""How fast the card reads its memory: a Triton kernel that adds up more than any cache holds.

torch's own sum of integers reaches a sixth of it (H200, 2026-11), so it is no measure of the card.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

TILE, TILES, WARPS = 2048, 64, 4
"""The best of four tilings on an H200 (2026-11-23): 4.53 TB/s; the others 3.3 to 3.7."""


@triton.jit
def _sums(x, out, TILE: tl.constexpr, TILES: tl.constexpr):  # noqa: N803 - compile-time constants
    first = tl.program_id(0).to(tl.int64) * TILE * TILES
    total = tl.zeros([TILE], tl.int32)
    for tile in range(TILES):
        total += tl.load(x + first + tile * TILE + tl.arange(0, TILE))
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


def read_rate(device: torch.device, size: int, seconds: Callable[[Callable[[], object]], float]) -> float:
    """Bytes a second over two buffers of `size` bytes, read in turn. Raises ValueError when a sum is
    wrong."""
    buffers = [torch.ones(size // 4, dtype=torch.int32, device=device) for _ in range(2)]
    programs = size // 4 // (TILE * TILES)
    out = torch.empty(programs, dtype=torch.int32, device=device)

    def read() -> None:
        for buffer in buffers:
            _sums[(programs,)](buffer, out, TILE=TILE, TILES=TILES, num_warps=WARPS)

    rate = len(buffers) * programs * TILE * TILES * 4 / seconds(read)
    if not bool((out == TILE * TILES).all()):
        raise ValueError("the card added up ones to something else; its memory or this kernel is broken")
    return rate
