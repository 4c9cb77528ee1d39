"""Brings what a step needs to know to the device in one copy.

Each array copied by itself would be ten transfers a step, each with its own launch and its own wait. The host
side is a ring of pinned buffers, because a step is written while the ones before are still being copied; the
device side is one buffer, so that a captured graph finds the arrays of its shape at the same place every
time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TURNS = 4
"""Steps whose copies may be under way; more than are ever in flight on one stage."""
WORD = 8
LINE_WORDS = 2
"""Arrays begin at multiples of 16 bytes, which kernels load at once."""

_NUMPY = {torch.int64: np.int64, torch.int32: np.int32, torch.float32: np.float32}


class Staging:
    """`words` words of 8 bytes for one step's arrays."""

    def __init__(self, device: torch.device, words: int, turns: int = TURNS) -> None:
        pinned = device.type == "cuda"
        self._host = [torch.zeros(words, dtype=torch.int64, pin_memory=pinned) for _ in range(turns)]
        self._written = [buffer.numpy() for buffer in self._host]
        self._device = torch.zeros(words, dtype=torch.int64, device=device)
        self._views: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._turn = 0
        self._end = 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._device.nbytes

    def begin(self) -> None:
        """Start a step's arrays."""
        self._turn = (self._turn + 1) % len(self._host)
        self._end = 0

    def put(self, values: Sequence[int] | Sequence[float] | np.ndarray, dtype: torch.dtype) -> Tensor:
        """Add an array; it is where the returned device tensor looks once `send` is called."""
        count = len(values)
        first = self._end
        lines = -(-count * dtype.itemsize // (WORD * LINE_WORDS))
        self._end += lines * LINE_WORDS
        words = self._written[self._turn]
        assert self._end <= len(words), f"a step wants {self._end} words of {len(words)}"
        words[first : self._end].view(_NUMPY[dtype])[:count] = values
        key = (first, count, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._device[first : self._end].view(dtype)[:count]
        return view

    def send(self) -> None:
        """Copy the step's arrays."""
        self._device[: self._end].copy_(self._host[self._turn][: self._end], non_blocking=True)
