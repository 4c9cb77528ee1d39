"""Files nobody vouches for: whatever bytes come, the readers answer with facts or with a ModelError, at
once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.model import crafted
from tests.unit.model.crafted import F16, MemorySource, config
from tests.unit.model.test_read import checkpoint

from plimsoll.model.errors import ModelError
from plimsoll.model.facts import ModelFacts
from plimsoll.model.fields import MAX_LAYERS
from plimsoll.model.read import read_facts

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


@pytest.mark.parametrize("layers", [MAX_LAYERS])
def test_the_most_layers_that_are_accepted_are_read_in_time(layers: int) -> None:
    raw = config(num_hidden_layers=layers)
    facts = read_facts(MemorySource({"config.json": raw}, entry="config.json"))
    assert facts.layer_count == layers
