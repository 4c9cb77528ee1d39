"""Tensor tables of safetensors files, from their headers alone.

A file is an 8-byte little-endian length, that many bytes of JSON, and the tensor data; the JSON names type,
shape and byte range of each tensor (format description of the safetensors library). Reading headers is exact
for every stored type and costs kilobytes of a file of gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from plimsoll.model.errors import FileTruncated, FileUnreadable, FormatUnsupported, ModelNotFound
from plimsoll.model.json_text import parse_object
from plimsoll.model.source import CHUNK, Source, StoredTensor, read_exactly, read_whole

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer ones too."""
MAX_INDEX_BYTES = 50_000_000
MAX_DIMENSIONS = 8

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


def checkpoint_files(source: Source) -> tuple[str, ...]:
    """Names of the files that make up the checkpoint of a folder, in order.

    `model.safetensors` or what the index lists; without an index every root-level file. Copies under
    `original/` and `consolidated*` hold the same weights again and are left out. Raises ModelNotFound when
    there is none.
    """
    files = source.files()
    if WHOLE in files:
        return (WHOLE,)
    if INDEX in files:
        return index_files(source, INDEX)
    shards = sorted(
        name
        for name in files
        if name.endswith(".safetensors") and "/" not in name and not name.startswith("consolidated")
    )
    if not shards:
        raise ModelNotFound(f"no *.safetensors file among {_some(files)}")
    return tuple(shards)


def index_files(source: Source, index: str) -> tuple[str, ...]:
    """The shards that an index file names. Raises FileUnreadable when one is missing or not a shard."""
    content = parse_object(read_whole(source, index, MAX_INDEX_BYTES), index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileUnreadable(f"{index}: weight_map: expected tensor names with their files")
    folder = index.rpartition("/")[0]
    shards: set[str] = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or not shard.endswith(".safetensors"):
            raise FileUnreadable(
                f"{index}: weight_map.{tensor}: expected a *.safetensors file beside it, found {shard!r}"
            )
        shards.add(f"{folder}/{shard}" if folder else shard)
    missing = sorted(shards - source.files().keys())
    if missing:
        raise FileUnreadable(f"{index}: lists {missing[0]}, which does not exist")
    return tuple(sorted(shards))


def read_tensors(source: Source, names: tuple[str, ...]) -> tuple[list[StoredTensor], dict[str, bytes]]:
    """All tensors of these files, and the raw headers by file. Raises ModelError."""
    tensors: dict[str, StoredTensor] = {}
    owners: dict[str, str] = {}
    headers: dict[str, bytes] = {}
    for name in names:
        headers[name] = _read_header(source, name)
        for tensor in parse_header(headers[name], name, source.files()[name]):
            if tensor.name in tensors:
                raise FileUnreadable(f"{name}: {tensor.name} is stored in {owners[tensor.name]} already")
            tensors[tensor.name], owners[tensor.name] = tensor, name
    return list(tensors.values()), headers


def _read_header(source: Source, name: str) -> bytes:
    size = source.files()[name]
    start = source.read(name, 0, min(size, CHUNK))
    if len(start) < 8:
        raise FileTruncated(
            f"{name}: {len(start)} bytes, shorter than the header length of a safetensors file"
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise FileUnreadable(
            f"{name}: header length {length} is over {MAX_HEADER_BYTES}: not a safetensors file"
        )
    if 8 + length > size:
        raise FileTruncated(f"{name}: header of {length} bytes in a file of {size}")
    header = start[8 : 8 + length]
    return header + read_exactly(source, name, 8 + len(header), length - len(header))


def parse_header(header: bytes, name: str, file_bytes: int) -> list[StoredTensor]:
    """Tensors of one header, checked against the size of the file. Raises FileUnreadable or FileTruncated."""
    content = parse_object(header, name)
    content.pop("__metadata__", None)
    tensors: list[StoredTensor] = []
    ranges: list[tuple[int, int]] = []
    for tensor, entry in content.items():
        tensors.append(_tensor(tensor, entry, name))
        ranges.append(_range(tensors[-1], entry, name))
    end = 0
    for begin, stop in sorted(ranges):
        if begin != end:
            raise FileUnreadable(
                f"{name}: data_offsets overlap or leave a hole at byte {end} of the tensor data"
            )
        end = stop
    promised = 8 + len(header) + end
    if promised > file_bytes:
        raise FileTruncated(f"{name}: the header promises {promised} bytes, the file has {file_bytes}")
    return tensors


def _tensor(tensor: str, entry: Any, name: str) -> StoredTensor:
    if not isinstance(entry, dict):
        raise FileUnreadable(f"{name}: {tensor}: expected an object with dtype, shape and data_offsets")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str):
        raise FileUnreadable(f"{name}: {tensor}: dtype: expected a string, found {dtype!r}")
    if dtype not in DTYPE_BYTES:
        raise FormatUnsupported(f"{name}: {tensor}: dtype {dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(n) for n in shape):
        raise FileUnreadable(
            f"{name}: {tensor}: shape: expected up to {MAX_DIMENSIONS} sizes, found {shape!r:.80}"
        )
    elements = math.prod(shape)
    return StoredTensor(tensor, dtype, tuple(shape), elements, elements * DTYPE_BYTES[dtype])


def _range(tensor: StoredTensor, entry: Mapping[str, Any], name: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise FileUnreadable(
            f"{name}: {tensor.name}: data_offsets: expected [begin, end], found {offsets!r:.80}"
        )
    begin, end = offsets
    if end - begin != tensor.bytes:
        raise FileUnreadable(
            f"{name}: {tensor.name}: data_offsets span {end - begin} bytes, {tensor.dtype} of shape"
            f" {list(tensor.shape)} takes {tensor.bytes}"
        )
    return begin, end


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _some(files: Mapping[str, int]) -> str:
    return ", ".join(_first(sorted(files), 5)) or "no files at all"


def _first(names: list[str], most: int) -> Iterator[str]:
    yield from names[:most]
    if len(names) > most:
        yield f"{len(names) - most} more"
