"""From a folder, a file or a config.json to ModelFacts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from dev.hub.smollm2 import smollm2_gguf
from dev.hub.well_known import generate, safetensors_header
from tests.unit.model import crafted
from tests.unit.model.crafted import F32, Q4_1, Q8_0, MemorySource, config

from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.errors import (
    ArchitectureUnsupported,
    FileTruncated,
    FileUnreadable,
    FormatUnsupported,
    ModelError,
    ModelNotFound,
)
from plimsoll.model.facts import Role
from plimsoll.model.read import read_facts
from plimsoll.sources import open_source

LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64


def checkpoint(name: str = "model.safetensors", **changes: object) -> dict[str, bytes]:
    """A tiny llama, with its weights."""
    raw = config(**changes)
    tensors = closed_form(parse_config(raw), "config.json")
    return {
        "config.json": raw,
        name: safetensors_header(tensors) + bytes(sum(tensor.bytes for tensor in tensors)),
    }


def test_a_safetensors_folder_becomes_facts() -> None:
    facts = read_facts(MemorySource(checkpoint()))
    assert (facts.architecture, facts.format, facts.file) == ("llama", "safetensors", "")
    assert facts.parameters == 2 * 96 * 64 + 64 + 2 * LAYER
    assert facts.checkpoint_bytes == 2 * facts.parameters
    assert [(layer.count, layer.kv_heads, layer.key_dim, layer.window) for layer in facts.layers] == [
        (2, 2, 16, None)
    ]
    by_role = {group.role: group.elements for group in facts.layers[0].groups}
    assert by_role == {
        Role.ATTENTION_Q: 2 * 64 * 64,
        Role.ATTENTION_KV: 2 * 64 * 32,
        Role.MLP: 3 * 64 * 128,
        Role.NORM: 128,
    }


def test_a_config_alone_gives_the_same_facts_as_its_weights() -> None:
    whole = read_facts(MemorySource(checkpoint()))
    alone = read_facts(MemorySource({"config.json": config()}, entry="config.json"))
    assert alone.model_copy(update={"revision": whole.revision}) == whole


def test_every_way_to_point_at_the_weights_gives_the_same_facts() -> None:
    files = checkpoint()
    by_folder = read_facts(MemorySource(files))
    assert read_facts(MemorySource(files, entry="model.safetensors")) == by_folder
    index = b'{"weight_map": {"lm_head.weight": "model.safetensors"}}'
    indexed = MemorySource({**files, "m.safetensors.index.json": index}, entry="m.safetensors.index.json")
    assert read_facts(indexed) == by_folder


def test_a_gguf_folder_becomes_facts() -> None:
    facts = read_facts(MemorySource({"tiny.gguf": crafted.llama_gguf([[Q4_1] * 7, [Q8_0] * 7])}))
    assert (facts.format, facts.file, facts.tied, facts.vocab) == ("gguf", "tiny.gguf", True, 500)
    assert [layer.count for layer in facts.layers] == [1, 1]
    assert facts.outer[0].bytes == 500 * 256 // 32 * 34


def test_the_real_gguf_has_the_published_parameters() -> None:
    facts = read_facts(open_source(str(smollm2_gguf())))
    assert facts.parameters == 134_515_008
    assert [layer.count for layer in facts.layers] == [30]
    assert facts.max_position == 8192


def test_the_revision_of_files_changes_with_their_content_and_nothing_else() -> None:
    first, again = (read_facts(MemorySource(checkpoint())).revision for _ in range(2))
    other = read_facts(MemorySource(checkpoint(rope_theta=1e6))).revision
    assert first == again != other
    assert len(first) <= 63


def test_the_commit_of_a_hub_is_the_revision() -> None:
    assert read_facts(MemorySource(checkpoint(), commit="c0ffee")).revision == "c0ffee"


def test_a_tied_head_that_is_stored_again_is_counted_in_the_file_only() -> None:
    raw = config(tie_word_embeddings=True)
    tensors = closed_form(parse_config(config()), "config.json")
    data = safetensors_header(tensors) + bytes(sum(tensor.bytes for tensor in tensors))
    facts = read_facts(MemorySource({"config.json": raw, "model.safetensors": data}))
    assert facts.checkpoint_bytes - 2 * facts.parameters == 2 * 96 * 64


def rotary() -> dict[str, bytes]:
    files = checkpoint()
    tensors = closed_form(parse_config(config()), "config.json")
    extra = dataclasses.replace(
        tensors[-1],
        name="model.layers.0.self_attn.rotary_emb.inv_freq",
        dtype="F32",
        shape=(8,),
        elements=8,
        bytes=32,
    )
    tensors.append(extra)
    files["model.safetensors"] = safetensors_header(tensors) + bytes(sum(t.bytes for t in tensors))
    return files


def test_rotary_buffers_are_in_the_file_and_in_no_parameter() -> None:
    plain, with_buffers = read_facts(MemorySource(checkpoint())), read_facts(MemorySource(rotary()))
    assert with_buffers.parameters == plain.parameters
    assert with_buffers.checkpoint_bytes == plain.checkpoint_bytes + 32


def without(name: str) -> dict[str, bytes]:
    tensors = [t for t in closed_form(parse_config(config()), "config.json") if t.name != name]
    data = safetensors_header(tensors) + bytes(sum(tensor.bytes for tensor in tensors))
    return {"config.json": config(), "model.safetensors": data}


def foreign(name: str, dtype: str = "BF16") -> dict[str, bytes]:
    tensors = closed_form(parse_config(config()), "config.json")
    tensors[2] = dataclasses.replace(tensors[2], name=name, dtype=dtype)
    data = safetensors_header(tensors) + bytes(sum(tensor.bytes for tensor in tensors))
    return {"config.json": config(), "model.safetensors": data}


GGUF = crafted.llama_gguf([[F32] * 7])
REFUSED: dict[str, tuple[dict[str, bytes], type[ModelError], str]] = {
    "nothing": ({}, ModelNotFound, "no files at all"),
    "no weights": ({"config.json": config()}, ModelNotFound, "found config.json"),
    "pickles": ({"pytorch_model.bin": b""}, FormatUnsupported, "pytorch_model.bin: pickled weights"),
    "several GGUF": ({"a.gguf": GGUF, "b.gguf": GGUF}, FormatUnsupported, "2 GGUF files: a.gguf, b.gguf"),
    "no config.json": ({"model.safetensors": b""}, FileUnreadable, "config.json: missing"),
    "a tensor is missing": (without("lm_head.weight"), FileUnreadable, "tensor lm_head.weight is missing"),
    "another shape": (
        {**checkpoint(), "config.json": config(vocab_size=97)},
        FileUnreadable,
        "model.embed_tokens.weight has shape [96, 64], by its hyper-parameters it is [97, 64]",
    ),
    "a foreign tensor": (
        {**checkpoint(), "config.json": config(num_hidden_layers=1)},
        ArchitectureUnsupported,
        "'model.layers.1.self_attn.q_proj.weight' is none that a llama model of 1 layers has",
    ),
    "FP8 weights": (
        checkpoint(torch_dtype="float32")
        | {"model.safetensors": checkpoint()["model.safetensors"].replace(b'"BF16"', b'"I16" ')},
        FormatUnsupported,
        "is I16; weights in F32, F16 and BF16 are read",
    ),
    "truncated weights": (
        {**checkpoint(), "model.safetensors": checkpoint()["model.safetensors"][:-1]},
        FileTruncated,
        "model.safetensors: the header promises",
    ),
    "truncated GGUF": ({"a.gguf": GGUF[:-1]}, FileTruncated, "a.gguf: tensor"),
}


@pytest.mark.parametrize(("files", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_whole_model_is_refused_by_name(
    files: dict[str, bytes], error: type[ModelError], words: str
) -> None:
    with pytest.raises(error) as caught:
        read_facts(MemorySource(files))
    assert words in str(caught.value)
    assert caught.value.failure().reason == error.reason


CONFIGS: dict[str, tuple[dict[str, object], type[ModelError], str]] = {
    "unknown family": (
        {"model_type": "mamba"},
        ArchitectureUnsupported,
        "'mamba' is not supported; supported are",
    ),
    "no family": ({"model_type": None}, ArchitectureUnsupported, "model_type: expected a string"),
    "quantized": (
        {"quantization_config": {"quant_method": "exl3"}},
        FormatUnsupported,
        "quant_method 'exl3' is not read from config.json alone",
    ),
    "no width": ({"hidden_size": None}, FileUnreadable, "hidden_size: expected a whole number from 1"),
    "negative": ({"num_hidden_layers": -1}, FileUnreadable, "num_hidden_layers: expected a whole number"),
    "2^60 layers": ({"num_hidden_layers": 2**60}, FileUnreadable, "num_hidden_layers: expected"),
    "text": ({"vocab_size": "big"}, FileUnreadable, "vocab_size: expected a whole number"),
    "true": ({"vocab_size": True}, FileUnreadable, "vocab_size: expected a whole number"),
    "ragged heads": ({"num_key_value_heads": 3}, FileUnreadable, "is no multiple of num_key_value_heads 3"),
    "tied is text": (
        {"tie_word_embeddings": "yes"},
        FileUnreadable,
        "tie_word_embeddings: expected true or false",
    ),
    "no type and no weights": ({"torch_dtype": None}, FileUnreadable, "torch_dtype: expected float32"),
}


@pytest.mark.parametrize(("changes", "error", "words"), CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_config_is_refused_by_field(
    changes: dict[str, object], error: type[ModelError], words: str
) -> None:
    with pytest.raises(error) as caught:
        read_facts(MemorySource({"config.json": config(**changes)}, entry="config.json"))
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "mistral"}, [4096] * 2),
        ({"model_type": "mistral", "sliding_window": 128}, [128] * 2),
        ({"model_type": "qwen2", "sliding_window": 128}, [None] * 2),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 128,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            [None, 128],
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 64,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            [64, None],
        ),
    ],
    ids=["mistral's default", "mistral", "qwen off", "qwen on", "layer types"],
)
def test_sliding_windows_follow_the_family(changes: dict[str, object], windows: list[int | None]) -> None:
    assert list(parse_config(config(**changes)).windows) == windows


def test_a_folder_on_disk_is_read_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    for name, data in checkpoint().items():
        (tmp_path / name).write_bytes(data)
    assert read_facts(open_source(str(tmp_path))) == read_facts(
        open_source(str(tmp_path / "model.safetensors"))
    )
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FormatUnsupported, match="expected a folder"):
        open_source(str(tmp_path / "notes.txt"))


def test_a_generated_repository_written_to_disk_is_the_same(tmp_path: Path) -> None:
    from dev.hub.repository import Repository

    made = generate("a/b", crafted.LLAMA)
    made.write(tmp_path / "a" / "b")
    back = Repository.from_folder("a/b", tmp_path / "a" / "b")
    assert back.commit == made.commit
    assert {name: file.size for name, file in back.files.items()} == {
        name: file.size for name, file in made.files.items()
    }
