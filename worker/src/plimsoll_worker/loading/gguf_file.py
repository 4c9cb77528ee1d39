"""Reads a GGUF file: header with the standard library, tensors with the `gguf` package's dequantisation.

The package's own reader keeps a numpy view for every string of the vocabulary: 3 s and 100 MB for 49,152
tokens, several times that for a modern 128 k vocabulary, and it maps the whole file. This one parses the
header once, then reads one tensor at a time, so that a start never holds more than the weights and one
tensor.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported

ELEMENT_TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
STORED_PLAINLY = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SLAB_ELEMENTS = 1024 * 1024
"""Dequantised at a time: the package builds its result twice, which for a whole embedding would be felt."""

MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. `shape` is outer dimension first, as torch has it; `offset` is from the
    file's start."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    def part(self, first: int, last: int) -> GgufTensor:
        """Those of the outer dimension, from first to last (exclusive)."""
        width = self.bytes // self.shape[0]
        return replace(
            self,
            shape=(last - first, *self.shape[1:]),
            offset=self.offset + first * width,
            bytes=(last - first) * width,
        )


class GgufFile:
    """Metadata and tensors of one GGUF file."""

    def __init__(self, path: Path) -> None:
        """Parse the header and check that every tensor lies within the file.

        Raises ModelUnreadable naming the file, ModelUnsupported for element types the engine does not have.
        """
        self.path = path
        self.metadata: dict[str, Any]
        self.tensors: dict[str, GgufTensor]
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                self.metadata, self.tensors = _parse(_Cursor(view), path)
        except (struct.error, IndexError, UnicodeDecodeError, KeyError) as error:
            raise ModelUnreadable(f"{path}: the GGUF header ends early or is damaged ({error})") from error
        except (OSError, ValueError) as error:
            raise ModelUnreadable(f"{path}: {error}") from error
        size = path.stat().st_size
        for tensor in self.tensors.values():
            if tensor.offset + tensor.bytes > size:
                raise ModelUnreadable(
                    f"{path}: the file is truncated: tensor {tensor.name} ends at byte "
                    f"{tensor.offset + tensor.bytes}, the file has {size}"
                )

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor, or of the outer dimension from first to last (exclusive), as stored when it is F32, F16
        or BF16, else dequantised to FP32."""
        tensor = self.tensors[name]
        if rows is not None:
            tensor = tensor.part(*rows)
        raw = bytearray(tensor.bytes)
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset)
                got = file.readinto(raw)
        except OSError as error:
            raise ModelUnreadable(f"{self.path}: tensor {name}: {error}") from error
        if got != tensor.bytes:
            raise ModelUnreadable(f"{self.path}: tensor {name}: read {got} of {tensor.bytes} bytes")
        plain = STORED_PLAINLY.get(tensor.type)
        if plain is not None:
            return torch.frombuffer(raw, dtype=plain).reshape(tensor.shape)
        return _dequantise(np.frombuffer(raw, dtype=np.uint8), tensor)


def _dequantise(raw: np.ndarray[Any, np.dtype[np.uint8]], tensor: GgufTensor) -> torch.Tensor:
    quantization = GGMLQuantizationType[tensor.type]
    block_elements, block_bytes = GGML_QUANT_SIZES[quantization]
    out = torch.empty(math.prod(tensor.shape), dtype=torch.float32)
    values = out.numpy()
    blocks = SLAB_ELEMENTS // block_elements
    rows = raw.reshape(-1, block_bytes)
    for first in range(0, len(rows), blocks):
        # As one long row: the package works through rows in groups of 16, which is slow for short ones.
        slab = dequantize(rows[first : first + blocks].reshape(1, -1), quantization)
        values[first * block_elements : first * block_elements + slab.size] = slab[0]
    return out.reshape(tensor.shape)


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, view: mmap.mmap) -> None:
        self.view = view
        self.at = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length: int = self.scalar("Q")
        raw = self.view[self.at : self.at + length]
        if len(raw) != length:
            raise IndexError(f"a string of {length} bytes at byte {self.at}")
        self.at += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, length = self.scalar("I"), self.scalar("Q")
        if inner in (_STRING, _ARRAY):
            if length > len(self.view):
                raise IndexError(f"an array of {length} entries at byte {self.at}")
            return [self.value(inner) for _ in range(length)]
        layout = struct.Struct(f"<{length}{_SCALARS[inner]}")
        values = layout.unpack_from(self.view, self.at)
        self.at += layout.size
        return list(values)


def _parse(cursor: _Cursor, path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if cursor.view[:4] != b"GGUF":
        raise ModelUnreadable(f"{path}: found {bytes(cursor.view[:4])!r} at the start, expected b'GGUF'")
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise ModelUnsupported(
            f"{path}: GGUF version {version}: this engine reads little-endian versions 2 and 3"
        )
    tensor_count, metadata_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        name = cursor.string()
        metadata[name] = cursor.value(cursor.scalar("I"))
    if metadata.get("split.count", 1) > 1:
        raise ModelUnsupported(
            f"{path}: split.count is {metadata['split.count']}: merge the parts into one GGUF file"
        )
    entries = [_tensor_entry(cursor, path) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    return metadata, {
        name: GgufTensor(name, shape, kind, start + offset, size)
        for name, shape, kind, offset, size in entries
    }


def _tensor_entry(cursor: _Cursor, path: Path) -> tuple[str, tuple[int, ...], str, int, int]:
    name = cursor.string()
    dimensions = cursor.scalar("I")
    if dimensions > MAX_DIMENSIONS:
        raise ModelUnreadable(
            f"{path}: tensor {name} has {dimensions} dimensions, GGUF allows {MAX_DIMENSIONS}"
        )
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    code, offset = cursor.scalar("I"), cursor.scalar("Q")
    known = {kind.value: kind for kind in GGMLQuantizationType}
    kind = known.get(code)
    if kind is None or kind.name not in ELEMENT_TYPES:
        found = kind.name if kind else f"type number {code}"
        raise ModelUnsupported(
            f"{path}: tensor {name} is {found}: this engine reads {', '.join(ELEMENT_TYPES)}"
        )
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block_elements:
        raise ModelUnreadable(
            f"{path}: tensor {name}: rows of {shape[-1]} are no multiple of {block_elements}"
        )
    return name, shape, kind.name, offset, math.prod(shape) // block_elements * block_bytes
