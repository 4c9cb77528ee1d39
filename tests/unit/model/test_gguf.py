"""The GGUF reader against the reference reader, and against files that lie."""

from __future__ import annotations

import struct
import tracemalloc
from typing import cast

import pytest
from dev.hub.smollm2 import smollm2_gguf
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from tests.unit.model import crafted
from tests.unit.model.crafted import (
    F32,
    MemorySource,
    gguf_metadata,
    gguf_string,
    gguf_tensor,
    llama_metadata,
)

from plimsoll.model import gguf
from plimsoll.model.errors import FileTruncated, FileUnreadable, FormatUnsupported, ModelError
from plimsoll.model.ggml import BLOCK_TYPES
from plimsoll.model.gguf import ArrayLength
from plimsoll.sources import LocalSource

NAME = "model.gguf"


def read(data: bytes) -> gguf.GGUFHeader:
    return gguf.read_header(MemorySource({NAME: data}), NAME)


def test_a_real_file_reads_as_the_reference_reads_it() -> None:
    path = smollm2_gguf()
    header = gguf.read_header(LocalSource(path), path.name)
    reference = GGUFReader(path)
    assert {t.name: (t.dtype, t.shape, t.elements, t.bytes) for t in header.tensors} == {
        t.name: (t.tensor_type.name, tuple(reversed(t.shape.tolist())), int(t.n_elements), int(t.n_bytes))
        for t in reference.tensors
    }
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayLength(49152)


def test_block_sizes_are_those_of_the_reference() -> None:
    assert {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} == {
        kind: tuple(block) for kind, block in BLOCK_TYPES.items()
    }


def test_metadata_of_every_kind_is_read() -> None:
    header = read(crafted.gguf([*llama_metadata(), gguf_metadata("per.layer", [3, 3, 4])], []))
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["per.layer"] == (3, 3, 4)


def test_the_window_moves_on_over_a_header_longer_than_itself() -> None:
    long = gguf_metadata("tokenizer.ggml.tokens", ["x" * 1000] * 3000)
    data = crafted.gguf([long, gguf_metadata("after", 7)], [])
    assert len(data) > 2 * gguf.WINDOW
    assert read(data).metadata["after"] == 7


def scalar(kind: int, raw: bytes) -> bytes:
    return gguf_string("key") + struct.pack("<I", kind) + raw


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return gguf_string("key") + struct.pack("<IIQ", crafted.ARRAY, kind, count) + raw


def one(name: str = "t", dimensions: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0) -> bytes:
    return crafted.gguf([], [gguf_tensor(name, list(dimensions), kind, offset)], data=128)


MALFORMED: dict[str, tuple[bytes, type[ModelError], str]] = {
    "empty file": (b"", FileTruncated, "past the end of the file at byte 0"),
    "another format": (b"PK\x03\x04" + bytes(60), FileUnreadable, "starts with b'PK"),
    "version 1": (crafted.gguf([], [], version=1), FormatUnsupported, "GGUF version 1"),
    "big-endian": (crafted.gguf([], [], version=3 << 24), FormatUnsupported, "big-endian"),
    "2^60 tensors": (
        crafted.gguf([], [], tensor_count=2**60),
        FileUnreadable,
        "tensor count is 1152921504606846976",
    ),
    "2^60 metadata": (crafted.gguf([], [], metadata_count=2**60), FileUnreadable, "metadata count is"),
    "more tensors than bytes": (
        crafted.gguf([], [], tensor_count=99_999),
        FileTruncated,
        "tensor count is 99999",
    ),
    "string over the file": (
        crafted.gguf([struct.pack("<Q", 500)], [], metadata_count=1) + bytes(16),
        FileTruncated,
        "past the end",
    ),
    "string of 2^63 bytes": (
        crafted.gguf([struct.pack("<Q", 2**63)], [], metadata_count=1) + bytes(16),
        FileUnreadable,
        "not a GGUF header",
    ),
    "unknown metadata type": (
        crafted.gguf([scalar(99, b"")], []),
        FileUnreadable,
        "'key' has unknown type 99",
    ),
    "array of 2^60 numbers": (crafted.gguf([array(4, 2**60)], []), FileUnreadable, "more than"),
    "array longer than the file": (crafted.gguf([array(4, 10_000)], []), FileTruncated, "10000, but only"),
    "array of 2^60 strings": (crafted.gguf([array(8, 2**60)], []), FileUnreadable, "more than"),
    "array of arrays": (crafted.gguf([array(9, 1)], []), FileUnreadable, "an array of arrays"),
    "metadata twice": (
        crafted.gguf([gguf_metadata("k", 1), gguf_metadata("k", 2)], []),
        FileUnreadable,
        "'k' stands twice",
    ),
    "no dimensions": (one(dimensions=()), FileUnreadable, "0 dimensions"),
    "five dimensions": (one(dimensions=(1, 1, 1, 1, 1)), FileUnreadable, "5 dimensions"),
    "unknown tensor type": (one(kind=200), FormatUnsupported, "ggml type 200"),
    "row of half a block": (one(dimensions=(33,), kind=crafted.Q8_0), FileUnreadable, "no whole Q8_0 blocks"),
    "2^60 elements": (one(dimensions=(2**60,)), FileTruncated, "tensor t ends at byte"),
    "offset past the end": (one(offset=4096), FileTruncated, "tensor t ends at byte"),
    "tensor twice": (
        crafted.gguf([], [gguf_tensor("t", [4], F32, 0), gguf_tensor("t", [4], F32, 0)], data=64),
        FileUnreadable,
        "'t' stands twice",
    ),
    "alignment of 3": (
        crafted.gguf([gguf_metadata("general.alignment", 3)], []),
        FileUnreadable,
        "power of two",
    ),
}


@pytest.mark.parametrize(("data", "error", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_named_with_what_is_wrong(
    data: bytes, error: type[ModelError], words: str
) -> None:
    with pytest.raises(error) as caught:
        read(data)
    assert words in str(caught.value)
    assert NAME in str(caught.value)


def test_lying_counts_cost_no_memory() -> None:
    tracemalloc.start()
    try:
        for data, error, _ in MALFORMED.values():
            with pytest.raises(error):
                read(data)
        peak = cast("tuple[int, int]", tracemalloc.get_traced_memory())[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
