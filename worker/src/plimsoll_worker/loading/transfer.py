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
from plimsoll_worker.loading.checkpoint import Part

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

    def slice(self, first: int, last: int) -> Extent:
        """Those of the outer dimension."""
        inner = self.shape[1:].numel() * self.dtype.itemsize
        shape = torch.Size((last - first, *self.shape[1:]))
        return Extent(self.path, self.offset + first * inner, self.dtype, shape)

    def inner(self, index: int) -> Extent:
        """One of the outer dimension, which it lacks."""
        one = self.slice(index, index + 1)
        return Extent(one.path, one.offset, one.dtype, one.shape[1:])


def copy_extent(extent: Extent, target: torch.Tensor) -> None:
    """Fill `target`, of the extent's shape, converting to its type and device.

    Raises ModelUnreadable naming the file when it ends early or cannot be read.
    """
    if not target.is_contiguous():
        # Rows of every expert's matrix, say: contiguous one index at a time.
        for index in range(target.shape[0]):
            copy_extent(extent.slice(index, index + 1), target[index : index + 1].view(target.shape[1:]))
        return
    try:
        descriptor = os.open(extent.path, os.O_RDONLY)
        try:
            _copy(descriptor, extent, target.view(-1))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ModelUnreadable(f"{extent.path}: {error}") from error


def copy_part(extent: Extent, part: Part, target: torch.Tensor) -> None:
    """Fill `target` with a part of the extent. Of columns whole rows are read: a call for each row would take
    longer.

    Raises ModelUnreadable as `copy_extent`.
    """
    if part.expert is not None:
        extent = extent.inner(part.expert)
    if len(extent.shape) > 2:
        for index in range(extent.shape[0]):
            copy_part(extent.inner(index), part, target[index])
        return
    if part.rows is not None:
        extent = extent.slice(*part.rows)
    if part.columns is None:
        copy_extent(extent, target)
        return
    rows, width = extent.shape
    step = max(1, CHUNK_BYTES // (width * extent.dtype.itemsize))
    scratch = torch.empty((min(step, rows), width), dtype=extent.dtype, device=target.device)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        read = scratch[: last - first]
        copy_extent(extent.slice(first, last), read)
        target[first:last].copy_(Part(columns=part.columns).of(read))
        if target.is_cuda:  # what is read next comes on another stream
            torch.cuda.current_stream(target.device).synchronize()


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
