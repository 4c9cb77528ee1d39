"""The header and tensor table of a GGUF file, versions 2 and 3; tensor data is never touched.

The reader walks the file through a window, so that a header on a hub costs a few range requests, and every
count in the file is checked against the bytes that are left before anything is built from it: a lying count
ends in an error, not in memory. The `gguf` package was not used: it maps a local file whole and builds arrays
of the vocabulary.

    magic "GGUF" │ version │ tensor count │ metadata count │ metadata … │ tensor infos … │ padding │ data
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any

from plimsoll.model.errors import FileTruncated, FileUnreadable, FormatUnsupported
from plimsoll.model.ggml import BLOCK_TYPES
from plimsoll.model.source import Source, StoredTensor

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000
MAX_METADATA = 10_000
MAX_STRINGS = 4_000_000
"""Strings in one array: vocabularies have up to 262,144 tokens and a few times as many merges."""
KEPT_ARRAY = 4096
"""Longer arrays (vocabularies) are skipped over; per-layer values are shorter."""
MAX_DIMENSIONS = 4
WINDOW = 1024 * 1024

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_SCALAR_BYTES = {kind: struct.calcsize(form) for kind, form in _SCALARS.items()}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class ArrayLength:
    """Stands for an array that was skipped over."""

    count: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says before its tensor data."""

    version: int
    metadata: dict[str, Any]
    """Scalars, strings, short arrays of numbers; `ArrayLength` for everything longer."""
    tensors: tuple[StoredTensor, ...]
    digest: str
    """SHA-256 of the header bytes, hexadecimal."""


def read_header(source: Source, name: str) -> GGUFHeader:
    """Metadata and tensor table. Raises FileUnreadable, FileTruncated or FormatUnsupported."""
    cursor = _Cursor(source, name)
    magic = cursor.take(4)
    if magic != b"GGUF":
        raise FileUnreadable(f"{name}: starts with {magic!r}, a GGUF file starts with b'GGUF'")
    version = cursor.u32()
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "is big-endian" if swapped in (2, 3) else f"has GGUF version {version}"
        raise FormatUnsupported(f"{name}: {what}; versions 2 and 3, little-endian, are read")
    tensor_count = cursor.count("tensor count", MAX_TENSORS, least_bytes=24)
    metadata_count = cursor.count("metadata count", MAX_METADATA, least_bytes=13)
    metadata = _metadata(cursor, metadata_count)
    entries = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise FileUnreadable(f"{name}: general.alignment: expected a power of two, found {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    size = source.files()[name]
    tensors: dict[str, StoredTensor] = {}
    for tensor, offset in entries:
        if tensor.name in tensors:
            raise FileUnreadable(f"{name}: tensor {tensor.name!r} stands twice")
        if data_start + offset + tensor.bytes > size:
            raise FileTruncated(
                f"{name}: tensor {tensor.name} ends at byte {data_start + offset + tensor.bytes},"
                f" the file has {size}"
            )
        tensors[tensor.name] = tensor
    return GGUFHeader(version, metadata, tuple(tensors.values()), cursor.digest())


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise FileUnreadable(f"{cursor.name}: metadata {key[:80]!r} stands twice")
        metadata[key] = _value(cursor, cursor.u32(), key)
    return metadata


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind in _SCALARS:
        return cursor.scalar(kind)
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _array(cursor, key)
    raise FileUnreadable(f"{cursor.name}: metadata {key[:80]!r} has unknown type {kind}")


def _array(cursor: _Cursor, key: str) -> Any:
    kind = cursor.u32()
    if kind == _STRING:
        count = cursor.count(f"metadata {key[:80]!r}", MAX_STRINGS, least_bytes=8)
        for _ in range(count):
            cursor.skip(cursor.u64())
        return ArrayLength(count)
    if kind not in _SCALARS:
        what = "an array of arrays" if kind == _ARRAY else f"an array of unknown type {kind}"
        raise FileUnreadable(f"{cursor.name}: metadata {key[:80]!r} is {what}")
    width = _SCALAR_BYTES[kind]
    count = cursor.count(f"metadata {key[:80]!r}", MAX_HEADER_BYTES, least_bytes=width)
    if count > KEPT_ARRAY:
        cursor.skip(count * width)
        return ArrayLength(count)
    return tuple(cursor.scalar(kind) for _ in range(count))


def _tensor_info(cursor: _Cursor) -> tuple[StoredTensor, int]:
    name = cursor.string()
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise FileUnreadable(
            f"{cursor.name}: tensor {name[:80]!r} has {dimensions} dimensions, expected 1 to 4"
        )
    # GGUF writes the fastest dimension first.
    shape = tuple(reversed([cursor.u64() for _ in range(dimensions)]))
    kind, offset = cursor.u32(), cursor.u64()
    block = BLOCK_TYPES.get(kind)
    if block is None:
        raise FormatUnsupported(
            f"{cursor.name}: tensor {name[:80]!r} has ggml type {kind}, which is not known"
        )
    if shape[-1] % block.elements:
        raise FileUnreadable(
            f"{cursor.name}: tensor {name[:80]!r}: rows of {shape[-1]} are no whole {block.name} blocks"
            f" of {block.elements}"
        )
    elements = math.prod(shape)
    return StoredTensor(name, block.name, shape, elements, elements // block.elements * block.bytes), offset


class _Cursor:
    """Reads forward through a window; refuses to pass the end of the file or the most a header may have."""

    def __init__(self, source: Source, name: str) -> None:
        self.name = name
        self._source = source
        self._size = source.files()[name]
        self._window = b""
        self._start = 0
        self._offset = 0
        self._hash = hashlib.sha256()

    @property
    def position(self) -> int:
        return self._start + self._offset

    def take(self, length: int) -> bytes:
        self._require(length)
        data = self._window[self._offset : self._offset + length]
        self._offset += length
        return data

    def skip(self, length: int) -> None:
        # The bytes pass through the window all the same, because they belong to the digest.
        while length > 0:
            step = min(length, WINDOW)
            self._require(step)
            self._offset += step
            length -= step

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def scalar(self, kind: int) -> Any:
        return struct.unpack(_SCALARS[kind], self.take(_SCALAR_BYTES[kind]))[0]

    def string(self) -> str:
        length = self.u64()
        if length > WINDOW:
            raise FileUnreadable(
                f"{self.name}: a string of {length} bytes at byte {self.position}: not a GGUF header"
            )
        # Chat templates and names may be anything; only keys and architecture are compared.
        return self.take(length).decode("utf-8", "replace")

    def count(self, what: str, most: int, *, least_bytes: int) -> int:
        """A count that the rest of the file could hold: each entry takes at least `least_bytes`."""
        found = self.u64()
        if found > most:
            raise FileUnreadable(f"{self.name}: {what} is {found}, more than {most}: not a GGUF header")
        if found * least_bytes > self._size - self.position:
            raise FileTruncated(
                f"{self.name}: {what} is {found}, but only {self._size - self.position} bytes follow"
            )
        return found

    def digest(self) -> str:
        final = self._hash.copy()
        final.update(self._window[: self._offset])
        return final.hexdigest()

    def _require(self, length: int) -> None:
        if self._offset + length <= len(self._window):
            return
        if self.position + length > self._size:
            raise FileTruncated(
                f"{self.name}: the header goes on past the end of the file at byte {self._size}"
            )
        if self.position + length > MAX_HEADER_BYTES:
            raise FileUnreadable(f"{self.name}: the header is longer than {MAX_HEADER_BYTES} bytes")
        self._hash.update(self._window[: self._offset])
        rest = self._window[self._offset :]
        self._start, self._offset = self.position, 0
        wanted = min(max(WINDOW, length - len(rest)), self._size - self._start - len(rest))
        self._window = rest + self._source.read(self.name, self._start + len(rest), wanted)
        if len(self._window) < length:
            raise FileTruncated(
                f"{self.name}: ends at byte {self._start + len(self._window)}, inside its header"
            )
