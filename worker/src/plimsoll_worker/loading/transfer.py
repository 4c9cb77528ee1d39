"""Brings a stretch of a file into a tensor, wherever that is, without a copy of the whole in host memory.

Files are read with pread rather than through a mapping: a mapping counts the file's pages into the process,
turns a file that shrinks or a volume that goes away into SIGBUS instead of an error, and faults page by page
in one thread while the driver copies. On a GPU two small pinned buffers a thread take turns: one is filled
while the other is on its way.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from plimsoll_worker.errors import ModelUnreadable

CHUNK_BYTES = 4 * 1024 * 1024
"""Of one buffer. Two for each thread stay pinned as long as the process lives."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Elements of one type that lie in a file one after another."""

    path: Path
    offset: int
    """Bytes from the file's start."""
    dtype: torch.dtype
    shape: torch.Size

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def copy_extent(extent: Extent, target: torch.Tensor) -> None:
    """Fill `target`, of the extent's shape, converting to its type and device.

    Raises ModelUnreadable naming the file when it ends early or cannot be read.
    """
    if not target.is_contiguous():
        # Rows of every expert's matrix, say: contiguous one index at a time.
        for index in range(target.shape[0]):
            part = target[index]
            size = part.numel() * extent.dtype.itemsize
            copy_extent(Extent(extent.path, extent.offset + index * size, extent.dtype, part.shape), part)
        return
    try:
        descriptor = os.open(extent.path, os.O_RDONLY)
        try:
            _copy(descriptor, extent, target.view(-1))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ModelUnreadable(f"{extent.path}: {error}") from error


def _copy(descriptor: int, extent: Extent, target: torch.Tensor) -> None:
    if target.device.type == "cpu" and target.dtype == extent.dtype:
        _read(descriptor, extent, extent.offset, target)
        return
    buffers = _buffers(target.device)
    step = CHUNK_BYTES // extent.dtype.itemsize
    for turn, first in enumerate(range(0, target.numel(), step)):
        buffer = buffers[turn % len(buffers)]
        part = target[first : first + step]
        chunk = buffer.memory.view(extent.dtype)[: part.numel()]
        buffer.wait()
        _read(descriptor, extent, extent.offset + first * extent.dtype.itemsize, chunk)
        buffer.send(chunk, part)
    for buffer in buffers:
        buffer.wait()


def _read(descriptor: int, extent: Extent, offset: int, into: torch.Tensor) -> None:
    view = into.view(torch.uint8).numpy().data
    while view:
        got = os.preadv(descriptor, [view], offset)
        if got == 0:
            raise ModelUnreadable(
                f"{extent.path}: the file is truncated: it ends at byte {offset}, a tensor goes on"
            )
        view, offset = view[got:], offset + got


class _Buffer:
    """Host memory for one chunk on its way to `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self.memory = torch.empty(CHUNK_BYTES, dtype=torch.uint8, device="cpu", pin_memory=self._cuda)
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]

    def send(self, chunk: torch.Tensor, target: torch.Tensor) -> None:
        """Begin to copy a chunk of this buffer. It is converted where the target is."""
        with torch.cuda.stream(self._stream):
            if chunk.dtype != target.dtype:
                chunk = chunk.to(self._device, non_blocking=True)
            target.copy_(chunk, non_blocking=True)

    def wait(self) -> None:
        """Until what was sent has arrived."""
        if self._stream is not None:
            self._stream.synchronize()


_threads = threading.local()


def _buffers(device: torch.device) -> tuple[_Buffer, _Buffer]:
    """This thread's two, made at the first call."""
    found: dict[torch.device, tuple[_Buffer, _Buffer]] | None = getattr(_threads, "buffers", None)
    if found is None:
        found = _threads.buffers = {}
    if device not in found:
        found[device] = (_Buffer(device), _Buffer(device))
    return found[device]
