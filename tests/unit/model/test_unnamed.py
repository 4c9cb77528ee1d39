"""Families without a row: sized from headers when these leave no question, else refused by what is
unclear."""

from __future__ import annotations

import json

import pytest
from dev.hub.well_known import safetensors_header
from tests.unit.model.crafted import MemorySource, config

from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable, ModelError
from plimsoll.model.read import read_facts
from plimsoll.model.source import StoredTensor


def as_unknown(like: str = "llama", **changes: object) -> MemorySource:
    """A checkpoint of a known family whose config.json gives another name."""
    tensors = closed_form(parse_config(config(model_type=like, **changes)), "config.json")
    return files(tensors, **{"model_type": "novel", **changes})


def files(tensors: list[StoredTensor], **changes: object) -> MemorySource:
    header = safetensors_header(tensors)
    size = len(header) + sum(tensor.bytes for tensor in tensors)
    values = {**json.loads(config()), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    return MemorySource(
        {"config.json": json.dumps(values).encode(), "model.safetensors": header},
        sizes={"model.safetensors": size},
    )


@pytest.mark.parametrize(
    ("like", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16}),
        ("olmo2", {}),
        ("stablelm", {}),
    ],
    ids=["llama", "tied", "biases", "head norms", "experts", "other norms", "norm biases"],
)
def test_plain_decoders_are_sized_from_their_headers(like: str, changes: dict[str, object]) -> None:
    known = files(
        closed_form(parse_config(config(model_type=like, **changes)), "c"), model_type=like, **changes
    )
    expected, found = read_facts(known), read_facts(as_unknown(like, **changes))
    assert found.architecture == "novel"
    assert found.parameters == expected.parameters
    assert found.checkpoint_bytes == expected.checkpoint_bytes
    assert [(c.kv_heads, c.key_dim, c.value_dim) for c in found.layers] == [
        (c.kv_heads, c.key_dim, c.value_dim) for c in expected.layers
    ]
    assert [c.groups for c in found.layers] == [c.groups for c in expected.layers]


LATENT = {
    "n_routed_experts": 4, "moe_intermediate_size": 32, "q_lora_rank": 24, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1,
    "num_key_value_heads": None,
}  # fmt: skip
REFUSED: dict[str, tuple[MemorySource, type[ModelError], str]] = {
    "a latent": (as_unknown("deepseek_v3", **LATENT), ArchitectureUnsupported, "has kv_lora_rank"),
    "a window": (as_unknown("mistral", sliding_window=64), ArchitectureUnsupported, "has sliding_window"),
    "fused projections": (as_unknown("phi3"), ArchitectureUnsupported, "self_attn.qkv_proj.weight"),
    "other names": (as_unknown("falcon"), ArchitectureUnsupported, "transformer.word_embeddings.weight"),
    "more layers than told": (
        files(closed_form(parse_config(config()), "c"), model_type="novel", num_hidden_layers=1),
        ArchitectureUnsupported,
        "model.layers.1.",
    ),
    "fewer layers than told": (
        files(closed_form(parse_config(config()), "c"), model_type="novel", num_hidden_layers=3),
        ArchitectureUnsupported,
        "layer 2 has no self_attn.q_proj",
    ),
    "ragged heads": (
        files(closed_form(parse_config(config()), "c"), model_type="novel", num_key_value_heads=3),
        FileUnreadable,
        "do not divide by 3 heads",
    ),
    "wide queries": (
        files(closed_form(parse_config(config()), "c"), model_type="novel", num_attention_heads=2),
        ArchitectureUnsupported,
        "queries of layer 0 are 32 wide, keys 16",
    ),
    "packed weights": (
        as_unknown(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32}),
        ArchitectureUnsupported,
        "has quantization_config",
    ),
}


@pytest.mark.parametrize(("source", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_headers_leave_open_is_refused(
    source: MemorySource, error: type[ModelError], words: str
) -> None:
    with pytest.raises(error) as caught:
        read_facts(source)
    assert words in str(caught.value)


def test_a_config_alone_is_refused_as_an_unknown_architecture() -> None:
    source = MemorySource({"config.json": config(model_type="novel")}, entry="config.json")
    with pytest.raises(ArchitectureUnsupported, match="unknown architecture: model_type 'novel'"):
        read_facts(source)
