"""Published models: tensor bytes, parameters, KV cache and recurrent state, row by row of the table."""

from __future__ import annotations

import json

import pytest
from dev.hub.well_known import safetensors_header
from tests.unit.model.crafted import MemorySource
from tests.unit.model.published import Row, config_of, rows

from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.facts import ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing.weights import loaded_bytes
from plimsoll_worker.launch import Precision

ROWS = rows()
STORED_TWICE = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B")
"""Tied, with the head in the files all the same: only headers tell."""
WITHOUT_BYTES = ("Qwen/Qwen3.5-122B-A10B", "moonshotai/Kimi-K2.5", "zai-org/GLM-5.2-FP8")
"""The table knows GiB only, to two digits."""
PERMILLE = {"moonshotai/Kimi-K2.5": 0.2, "zai-org/GLM-5.2-FP8": 0.2}


def closed(row: Row) -> ModelFacts:
    return assemble_closed_form(parse_config(config_of(row)), where="config.json", revision="")


def by_headers(row: Row, **stored: object) -> ModelFacts:
    """Through a file: the tensors that `stored` describes beside the row's own config.json."""
    header = safetensors_header(closed_form(parse_config(config_of(row, **stored)), "config.json"))
    data = sum(tensor.bytes for tensor in closed_form(parse_config(config_of(row, **stored)), "config.json"))
    source = MemorySource(
        {"config.json": config_of(row), "model.safetensors": header},
        sizes={"model.safetensors": len(header) + data},
    )
    return read_facts(source)


def test_every_row_is_supported_and_as_exact_as_it_is_told() -> None:
    assert len(ROWS) == 47
    supported = [name for name, row in ROWS.items() if closed(row)]
    exact = [name for name in supported if name not in (*STORED_TWICE, *WITHOUT_BYTES)]
    assert (len(supported), len(exact)) == (47, 42)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in (*STORED_TWICE, *WITHOUT_BYTES)])
def test_tensor_bytes_from_hyper_parameters_are_within_a_ten_thousandth(name: str) -> None:
    published = int(ROWS[name]["checkpoint_tensor_bytes"])
    assert abs(closed(ROWS[name]).checkpoint_bytes - published) <= published / 10_000


@pytest.mark.parametrize("name", STORED_TWICE)
def test_a_head_that_is_stored_though_tied_is_found_in_the_headers(name: str) -> None:
    row = ROWS[name]
    facts = by_headers(row, tie_word_embeddings=False)
    assert facts.checkpoint_bytes == int(row["checkpoint_tensor_bytes"])
    assert facts.parameters == int(row["params_loaded_text"])
    assert closed(row).checkpoint_bytes == 2 * facts.parameters


@pytest.mark.parametrize("name", WITHOUT_BYTES)
def test_gib_that_others_publish_are_met(name: str) -> None:
    published = float(ROWS[name]["checkpoint_gib"])
    found = closed(ROWS[name]).checkpoint_bytes / 2**30
    assert abs(found - published) <= 0.006 + published * PERMILLE.get(name, 0) / 1000


@pytest.mark.parametrize("name", ROWS)
def test_kv_bytes_of_a_token_are_exact(name: str) -> None:
    facts = closed(ROWS[name])
    assert kv.bytes_per_token(facts, Precision.BF16) == int(ROWS[name]["kv_bytes_per_token_bf16"])


@pytest.mark.parametrize(
    "name",
    [n for n, row in ROWS.items() if row["swa_kv_bytes_cap_per_seq"] or row["recurrent_state_bytes_per_seq"]],
)
def test_what_is_bounded_for_a_sequence_is_exact(name: str) -> None:
    row = ROWS[name]
    expected = int(row["swa_kv_bytes_cap_per_seq"] or 0) + int(row["recurrent_state_bytes_per_seq"] or 0)
    assert kv.bounded_bytes_per_sequence(closed(row), Precision.BF16) == expected


@pytest.mark.parametrize(
    "name",
    [n for n, row in ROWS.items() if row["params_loaded_text"] and row["checkpoint_format"] == "bf16"],
)
def test_what_is_loaded_leaves_towers_and_prediction_layers_in_the_files(name: str) -> None:
    facts = closed(ROWS[name])
    buffers = sum(
        layer.count * group.elements
        for layer in facts.layers
        for group in layer.groups
        if group.dtype == "F32"
    )
    loaded = loaded_bytes(facts, Precision.BF16) // 2
    assert int(ROWS[name]["params_loaded_text"]) in (loaded, loaded - buffers)


@pytest.mark.parametrize("name", ROWS)
def test_facts_fit_a_termination_message_and_come_back_whole(name: str) -> None:
    facts = closed(ROWS[name])
    assert len(facts.pack()) < 1200
    assert ModelFacts.unpack(facts.pack()) == facts


# A few layers of each kind through real headers: what is known from the names equals the closed form.
SHORT = {
    "openai/gpt-oss-120b": {"num_hidden_layers": 4},
    "deepseek-ai/DeepSeek-V3 (and R1, V3-0324, R1-0528)": {"num_hidden_layers": 5, "n_routed_experts": 8},
    "zai-org/GLM-4.5-Air": {"num_hidden_layers": 3},
    "Qwen/Qwen3-Next-80B-A3B-Instruct": {"num_hidden_layers": 4, "num_experts": 8},
    "ai21labs/AI21-Jamba-Mini-1.5 (Jamba-v0.1 shape)": {"num_hidden_layers": 8},
    "google/gemma-3-4b-it": {"num_hidden_layers": 6},
    "google/gemma-4-31B-it": {"num_hidden_layers": 6},
    "tiiuae/falcon-180B": {"num_hidden_layers": 2},
    "mistralai/Mixtral-8x7B-v0.1": {"num_hidden_layers": 2},
    "moonshotai/Kimi-K2.5": {"num_hidden_layers": 2, "n_routed_experts": 8},
    "Qwen/Qwen3.5-122B-A10B": {"num_hidden_layers": 4},
    "microsoft/Phi-4-mini-instruct": {"num_hidden_layers": 2},
    "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4": {"num_hidden_layers": 2},
    "unsloth/Llama-3.3-70B-Instruct-bnb-4bit": {"num_hidden_layers": 2},
    "Qwen/Qwen2-VL-7B-Instruct": {"num_hidden_layers": 2},
}


@pytest.mark.parametrize("name", SHORT)
def test_headers_and_closed_form_agree(name: str) -> None:
    raw = config_of(ROWS[name], **SHORT[name])
    tensors = closed_form(parse_config(raw), "config.json")
    header = safetensors_header(tensors)
    source = MemorySource(
        {"config.json": raw, "model.safetensors": header},
        sizes={"model.safetensors": len(header) + sum(tensor.bytes for tensor in tensors)},
    )
    read = read_facts(source)
    formed = assemble_closed_form(parse_config(raw), where="config.json", revision=read.revision)
    assert read == formed
    assert json.loads(raw)["num_hidden_layers"] == read.layer_count
