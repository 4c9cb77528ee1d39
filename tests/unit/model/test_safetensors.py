"""The safetensors reader: what it reads, and what it says about files that are not right."""

from __future__ import annotations

import json

import pytest
from tests.unit.model import crafted
from tests.unit.model.crafted import MemorySource, entry

from plimsoll.model import safetensors
from plimsoll.model.errors import FileTruncated, FileUnreadable, FormatUnsupported, ModelError, ModelNotFound
from plimsoll.model.source import CHUNK

GOOD = {"a": entry("BF16", [2, 3], 0, 12), "b": entry("F32", [4], 12, 28)}


def read(data: bytes, **sizes: int) -> list[safetensors.StoredTensor]:
    source = MemorySource({"model.safetensors": data}, sizes=sizes)
    return safetensors.read_tensors(source, ("model.safetensors",))[0]


def test_a_header_tells_names_types_shapes_and_bytes() -> None:
    tensors = read(crafted.safetensors(GOOD | {"__metadata__": {"format": "pt", "data_offsets": [0, 0]}}, 28))
    assert [(t.name, t.dtype, t.shape, t.elements, t.bytes) for t in tensors] == [
        ("a", "BF16", (2, 3), 6, 12),
        ("b", "F32", (4,), 4, 16),
    ]


def test_a_header_longer_than_the_first_read_is_read_in_two() -> None:
    many = {f"tensor.{i:06}": entry("BF16", [1], 2 * i, 2 * i + 2) for i in range(4000)}
    data = crafted.safetensors(many)
    source = MemorySource({"model.safetensors": data})
    tensors, headers = safetensors.read_tensors(source, ("model.safetensors",))
    assert len(tensors) == 4000
    assert len(headers["model.safetensors"]) > CHUNK
    assert len(source.reads) == 2


def header(**changes: object) -> bytes:
    return crafted.safetensors(json.dumps({"a": {**GOOD["a"], **changes}}).encode(), 12)


MALFORMED = {
    "empty file": (b"", FileTruncated, "0 bytes"),
    "shorter than its length": (b"\x01\x02", FileTruncated, "2 bytes"),
    "length over the limit": (
        (2**62).to_bytes(8, "little") + b"{}",
        FileUnreadable,
        "not a safetensors file",
    ),
    "length over the file": ((1000).to_bytes(8, "little") + b"{}", FileTruncated, "header of 1000 bytes"),
    "not JSON": (crafted.safetensors(b"{nope", 0), FileUnreadable, "not valid JSON"),
    "not UTF-8": (crafted.safetensors(b'{"\xff": 1}', 0), FileUnreadable, "not UTF-8 text at byte 2"),
    "not an object": (crafted.safetensors(b"[]", 0), FileUnreadable, "expected a JSON object, found list"),
    "deep nesting": (crafted.safetensors(b"[" * 200_000, 0), FileUnreadable, "nested deeper"),
    "name twice": (crafted.safetensors(b'{"a": {}, "a": {}}', 0), FileUnreadable, "'a' stands twice"),
    "entry is a number": (crafted.safetensors(b'{"a": 7}', 0), FileUnreadable, "a: expected an object"),
    "unknown dtype": (header(dtype="F4"), FormatUnsupported, "dtype 'F4'"),
    "dtype is a number": (header(dtype=4), FileUnreadable, "dtype: expected a string"),
    "negative dimension": (header(shape=[-2, 3]), FileUnreadable, "shape: expected"),
    "dimension is true": (header(shape=[True, 6]), FileUnreadable, "shape: expected"),
    "too many dimensions": (header(shape=[1] * 9), FileUnreadable, "shape: expected up to 8"),
    "elements beyond any file": (header(shape=[2**60, 2**60]), FileUnreadable, "data_offsets span 12 bytes"),
    "offsets backwards": (header(data_offsets=[12, 0]), FileUnreadable, "span -12 bytes"),
    "offsets are floats": (header(data_offsets=[0.0, 12.0]), FileUnreadable, "expected [begin, end]"),
    "hole before the first": (header(data_offsets=[2, 14]), FileUnreadable, "leave a hole at byte 0"),
    "data cut off": (crafted.safetensors(GOOD, 27), FileTruncated, "promises"),
}


@pytest.mark.parametrize(("data", "error", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_named_with_what_is_wrong(
    data: bytes, error: type[ModelError], words: str
) -> None:
    with pytest.raises(error) as caught:
        read(data)
    assert words in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def folder(*names: str, **content: bytes) -> MemorySource:
    return MemorySource(dict.fromkeys(names, b"") | content)


def test_the_whole_file_is_preferred_to_shards_and_copies_are_left_out() -> None:
    names = ["model.safetensors", "consolidated.safetensors", "original/model.safetensors", "config.json"]
    assert safetensors.checkpoint_files(folder(*names)) == ("model.safetensors",)
    assert safetensors.checkpoint_files(folder("b.safetensors", "a.safetensors", *names[1:])) == (
        "a.safetensors",
        "b.safetensors",
    )


def test_an_index_names_the_shards() -> None:
    index = json.dumps({"weight_map": {"x": "2.safetensors", "y": "1.safetensors", "z": "1.safetensors"}})
    source = folder(
        "1.safetensors", "2.safetensors", "left-over.safetensors", **{safetensors.INDEX: index.encode()}
    )
    assert safetensors.checkpoint_files(source) == ("1.safetensors", "2.safetensors")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "weight_map: expected tensor names"),
        ({"weight_map": []}, "weight_map: expected tensor names"),
        ({"weight_map": {"x": 1}}, "weight_map.x: expected a *.safetensors file"),
        ({"weight_map": {"x": safetensors.INDEX}}, "weight_map.x: expected a *.safetensors file"),
        ({"weight_map": {"x": "../other/1.safetensors"}}, "weight_map.x: expected a *.safetensors file"),
        ({"weight_map": {"x": "3.safetensors"}}, "lists 3.safetensors, which does not exist"),
    ],
    ids=["no map", "list", "number", "itself", "outside", "missing shard"],
)
def test_an_index_that_leads_nowhere_is_refused(index: object, words: str) -> None:
    source = folder("1.safetensors", **{safetensors.INDEX: json.dumps(index).encode()})
    with pytest.raises(FileUnreadable, match=r"model\.safetensors\.index\.json") as caught:
        safetensors.checkpoint_files(source)
    assert words in str(caught.value)


def test_a_tensor_in_two_shards_is_refused() -> None:
    shard = crafted.safetensors(GOOD)
    source = MemorySource({"1.safetensors": shard, "2.safetensors": shard})
    with pytest.raises(FileUnreadable, match=r"2\.safetensors: a is stored in 1\.safetensors already"):
        safetensors.read_tensors(source, ("1.safetensors", "2.safetensors"))


def test_a_folder_without_weights_says_what_it_holds() -> None:
    with pytest.raises(ModelNotFound, match=r"no \*.safetensors file among README.md"):
        safetensors.checkpoint_files(folder("README.md"))
