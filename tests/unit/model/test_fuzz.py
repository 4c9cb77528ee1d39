"""Files nobody vouches for: whatever bytes come, the readers answer with facts or with a ModelError, at
once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from dev.hub.well_known import safetensors_header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.model import crafted
from tests.unit.model.crafted import F16, MemorySource, config
from tests.unit.model.published import config_of, rows
from tests.unit.model.test_read import checkpoint

from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.errors import ModelError
from plimsoll.model.facts import ModelFacts
from plimsoll.model.fields import MAX_LAYERS
from plimsoll.model.read import read_facts
from plimsoll.model.safetensors import DTYPE_BYTES
from plimsoll.model.source import StoredTensor

quick = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
GGUF = crafted.llama_gguf([[F16] * 7])
FOLDER = checkpoint()
HEADER_BYTES = 8 + int.from_bytes(FOLDER["model.safetensors"][:8], "little")

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def read_or_refuse(files: dict[str, bytes], entry: str = "") -> None:
    try:
        facts = read_facts(MemorySource(files, entry=entry))
    except ModelError:
        return
    assert ModelFacts.unpack(facts.pack()) == facts


@st.composite
def damaged(draw: st.DrawFn, original: bytes, within: int) -> bytes:
    """`original` with a few bytes of its first `within` changed, and perhaps its end cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, within - 1))
        data[place : place + 1] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@quick
@given(damaged(GGUF, len(GGUF) // 4))
def test_a_damaged_gguf_is_read_or_refused(data: bytes) -> None:
    read_or_refuse({"a.gguf": data})


@quick
@given(damaged(FOLDER["model.safetensors"], HEADER_BYTES))
def test_a_damaged_safetensors_file_is_read_or_refused(data: bytes) -> None:
    read_or_refuse({**FOLDER, "model.safetensors": data})


@quick
@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    read_or_refuse({"a.gguf": b"GGUF" + data})
    read_or_refuse({**FOLDER, "model.safetensors": data})
    read_or_refuse({"config.json": data}, entry="config.json")
    read_or_refuse({**FOLDER, "model.safetensors.index.json": data}, entry="model.safetensors.index.json")


@quick
@given(st.sampled_from(sorted(crafted.LLAMA)), anything)
def test_any_value_in_any_field_of_config_is_read_or_refused(field: str, value: Any) -> None:
    raw = json.dumps(json.loads(config()) | {field: value}).encode()
    read_or_refuse({"config.json": raw}, entry="config.json")


@quick
@given(st.dictionaries(st.text(max_size=8), anything, max_size=4))
def test_any_header_is_read_or_refused(header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    read_or_refuse({**FOLDER, "model.safetensors": crafted.safetensors(text, 16)})


CONFIGS = {name: json.loads(config_of(row)) for name, row in rows().items()}
SMALL = (
    "openai/gpt-oss-120b",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4",
    "google/gemma-3-4b-it",
)


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """The config.json of a published model with something else in one field, its own or that of a part."""
    values = json.loads(json.dumps(CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]))
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    part = draw(st.sampled_from(parts))
    field = draw(st.sampled_from(sorted(part)))
    part[field] = draw(anything | st.integers(-(2**62), 2**62) | st.sampled_from([0, 1, 2**31, 2**60]))
    return json.dumps(values).encode()


@settings(quick, max_examples=400)
@given(altered())
def test_any_value_in_any_field_of_any_family_is_read_or_refused(raw: bytes) -> None:
    read_or_refuse({"config.json": raw}, entry="config.json")


@st.composite
def with_a_wrong_tensor(draw: st.DrawFn) -> tuple[bytes, list[StoredTensor]]:
    """A short checkpoint with one tensor renamed, retyped, reshaped, or gone."""
    raw = json.dumps(
        {**CONFIGS[draw(st.sampled_from(SMALL))], "num_hidden_layers": 4, "num_experts": 3}
    ).encode()
    tensors = closed_form(parse_config(raw), "config.json")
    place = draw(st.integers(0, len(tensors) - 1))
    victim = tensors.pop(place)
    dtype = draw(st.sampled_from(sorted(DTYPE_BYTES)))
    shape = draw(st.sampled_from([victim.shape, victim.shape[::-1], (), (0,), (2**40,), (1,) * 8]))
    name = draw(st.sampled_from([victim.name, f"x{victim.name}", tensors[0].name, "", "model.layers.9.x"]))
    if name not in {tensor.name for tensor in tensors} and draw(st.booleans()):
        elements = math.prod(shape)
        tensors.append(StoredTensor(name, dtype, shape, elements, elements * DTYPE_BYTES[dtype]))
    return raw, tensors


@quick
@given(with_a_wrong_tensor())
def test_a_wrong_tensor_in_any_kind_of_checkpoint_is_read_or_refused(
    files: tuple[bytes, list[StoredTensor]],
) -> None:
    raw, tensors = files
    header = safetensors_header(tensors)
    size = len(header) + sum(tensor.bytes for tensor in tensors)
    source = MemorySource(
        {"config.json": raw, "model.safetensors": header}, sizes={"model.safetensors": size}
    )
    try:
        facts = read_facts(source)
    except ModelError:
        return
    assert facts.checkpoint_bytes == sum(tensor.bytes for tensor in tensors)


def test_deep_nesting_and_other_encodings_are_refused() -> None:
    for raw in (b'{"a":' * 100_000, b"\xff\xfe{}", b'{"model_type": "llama", "model_type": "llama"}', b"[]"):
        with pytest.raises(ModelError, match=r"config\.json"):
            read_facts(MemorySource({"config.json": raw}, entry="config.json"))


def test_a_header_of_over_100_mb_is_refused_unread() -> None:
    source = MemorySource(
        {**FOLDER, "model.safetensors": (100_000_001).to_bytes(8, "little") + b"{}"},
        sizes={"model.safetensors": 2**40},
    )
    with pytest.raises(ModelError, match="header length 100000001 is over 100000000"):
        read_facts(source)
    assert sum(length for _, _, length in source.reads) < 1_000_000


@pytest.mark.parametrize("layers", [MAX_LAYERS])
def test_the_most_layers_that_are_accepted_are_read_in_time(layers: int) -> None:
    raw = config(num_hidden_layers=layers)
    facts = read_facts(MemorySource({"config.json": raw}, entry="config.json"))
    assert facts.layer_count == layers
