"""Where the bytes of a model come from, as the readers see it: names, sizes and byte ranges.

The readers never open a file or a socket; a `Source` is given to them. So one reader serves a folder, a
volume and a hub repository, and the tests hand in dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from plimsoll.model.errors import FileTruncated, FileUnreadable

CHUNK = 128 * 1024
"""First bytes of a file that are read at once: most headers fit, and a request costs more than these
bytes."""


@runtime_checkable
class Source(Protocol):
    """Read access to the files of one model."""

    @property
    def entry(self) -> str:
        """The file that was pointed at; empty when a folder or a repository was."""

    @property
    def commit(self) -> str | None:
        """The hub commit that is read; None for files."""

    def files(self) -> Mapping[str, int]:
        """Sizes in bytes by name relative to the root, `/` between folders."""

    def read(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; shorter only where the file ends. Raises ModelError."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, as its header declares it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Outermost dimension first, as PyTorch writes it."""
    elements: int
    bytes: int


def read_exactly(source: Source, name: str, start: int, length: int) -> bytes:
    """`length` bytes from `start`. Raises FileTruncated when the file ends before."""
    data = source.read(name, start, length)
    if len(data) != length:
        raise FileTruncated(
            f"{name}: ends at byte {start + len(data)}, expected {length} bytes from {start} on"
        )
    return data


def read_whole(source: Source, name: str, limit: int) -> bytes:
    """A small file. Raises FileUnreadable when it is larger than `limit` bytes."""
    size = source.files()[name]
    if size > limit:
        raise FileUnreadable(f"{name}: {size} bytes, more than the {limit} that such a file may have")
    return read_exactly(source, name, 0, size)
