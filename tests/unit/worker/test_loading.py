"""Tensors from files into parameters, whatever their types and places, and models made of random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file
from tests.unit.worker.decoding import paged, sequence, steps
from tests.unit.worker.processes import WorkerProcess, smollm2_launch
from tests.unit.worker.test_models import CASES, SMALL, configuration, opened, saved

from plimsoll.model.read import read_facts
from plimsoll.sizing.kv_cache import layer_bytes_per_token
from plimsoll.sizing.weights import loaded_bytes
from plimsoll.sources import open_source
from plimsoll_worker.errors import ModelNotFound, ModelUnreadable, ModelUnsupported
from plimsoll_worker.launch import LayerRange, Precision
from plimsoll_worker.loading import transfer
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.placement import place
from plimsoll_worker.loading.random_weights import RandomCheckpoint
from plimsoll_worker.loading.transfer import Extent, copy_extent
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.settings import LoadFormat

CPU = torch.device("cpu")
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def written(path: Path, tensor: torch.Tensor, before: int = 24) -> Extent:
    """A file with the tensor after so many other bytes."""
    path.write_bytes(b"\xff" * before + tensor.view(torch.uint8).numpy().tobytes())
    return Extent(path, before, tensor.dtype, tensor.shape)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("kept", FLOATS)
def test_an_extent_is_converted_on_its_way(
    stored: torch.dtype, kept: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 64)
    monkeypatch.setattr(transfer, "_threads", transfer.threading.local())
    tensor = torch.randn(13, 7).to(stored)
    target = torch.zeros(13, 7, dtype=kept)
    copy_extent(written(tmp_path / "t", tensor), target)
    assert torch.equal(target, tensor.to(kept))


def test_an_extent_goes_into_a_part_of_every_experts_matrix(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4, 5)
    target = torch.zeros(3, 8, 5)
    copy_extent(written(tmp_path / "t", tensor), target[:, 4:])
    assert torch.equal(target[:, 4:], tensor)
    assert not target[:, :4].any()


def test_a_file_that_ends_early_is_told_by_name(tmp_path: Path) -> None:
    extent = written(tmp_path / "short", torch.randn(4, 4))
    with (tmp_path / "short").open("r+b") as file:
        file.truncate(50)
    with pytest.raises(ModelUnreadable, match=r"short: the file is truncated: it ends at byte 50"):
        copy_extent(extent, torch.zeros(4, 4))
    with pytest.raises(ModelUnreadable, match="gone"):
        copy_extent(Extent(tmp_path / "gone", 0, torch.float32, torch.Size([4])), torch.zeros(4))


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES.keys())
def test_every_element_of_every_parameter_is_filled_once(
    kind: str, changes: Mapping[str, object], tmp_path: Path
) -> None:
    saved(kind, changes, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with torch.device("meta"):
        shapes = {name: part.shape for name, part in Decoder(checkpoint.config).named_parameters()}
    filled = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items()}
    for piece in place(shapes, checkpoint.names(), checkpoint.config):
        region = piece.region(filled[piece.parameter])
        assert region.shape == checkpoint.shape(piece.name)
        region += 1
    assert [name for name, count in filled.items() if not (count == 1).all()] == []


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES.keys())
def test_the_operator_counts_the_bytes_that_the_engine_keeps(
    kind: str, changes: Mapping[str, object], tmp_path: Path
) -> None:
    saved(kind, changes, tmp_path)
    facts = read_facts(open_source(str(tmp_path)))
    model = opened(tmp_path)
    assert facts.architecture == model.config.architecture
    assert loaded_bytes(facts, Precision.FP32) == model.weight_bytes
    kept = sum(layer.count * layer_bytes_per_token(layer, Precision.FP32) for layer in facts.layers)
    assert kept == model.config.kv_bytes_per_token(Precision.FP32)


def test_a_tensor_too_many_or_too_few_or_of_another_shape_is_told(tmp_path: Path) -> None:
    tensors = {name: part.clone() for name, part in saved("Llama", {}, tmp_path).state_dict().items()}
    weights = tmp_path / "model.safetensors"
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({**tensors, "model.layers.1.more": torch.zeros(1)}, weights)
    with pytest.raises(ModelUnsupported, match=r"no place for: layers\.1\.more"):
        opened(tmp_path)
    save_file({key: part for key, part in tensors.items() if key != name}, weights)
    with pytest.raises(ModelUnreadable, match=r"lacks 1 tensors, the first is layers\.1\.self_attn\.k_proj"):
        opened(tmp_path)
    save_file({**tensors, name: torch.zeros(3, 48)}, weights)
    with pytest.raises(ModelUnreadable, match=r"k_proj\.weight is \[3, 48\], the configuration says"):
        opened(tmp_path)
    save_file({**tensors, name: torch.zeros(16, 48, dtype=torch.int32)}, weights)
    with pytest.raises(ModelUnsupported, match=r"k_proj\.weight is I32"):
        opened(tmp_path)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    saved("Llama", {}, tmp_path)
    told: list[tuple[int, int]] = []
    model = load_model(
        open_checkpoint(tmp_path),
        device=CPU,
        precision=Precision.BF16,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1] == (model.weight_bytes, model.weight_bytes)


def described(folder: Path, kind: str, changes: Mapping[str, Any]) -> Path:
    """A folder with config.json alone."""
    configuration(kind)(**{**SMALL, **changes}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ["llama, biases", "qwen3", "gemma2", "phi3", "granite", "qwen3_moe"])
def test_random_weights_need_a_config_alone_and_stay_finite_in_depth(case: str, tmp_path: Path) -> None:
    kind, changes = CASES[case]
    described(tmp_path, kind, {**changes, "num_hidden_layers": 40, "vocab_size": 300})
    models = [
        load_model(open_checkpoint(tmp_path, LoadFormat.DUMMY), device=CPU, precision=Precision.BF16)
        for _ in range(2)
    ]
    ours, again = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    ((_, logits),) = steps_of_one(models[0])
    assert logits.isfinite().all()
    assert 0.1 < logits.float().std() < 10


def steps_of_one(model: Decoder) -> list[tuple[Any, torch.Tensor]]:
    asked = sequence(tuple(range(30)), max_tokens=1)
    found = []
    for current, logits in steps(paged(model, blocks=16), [asked], max_batched_tokens=64):
        current.append(0)
        found.append((current, logits))
    return found


def test_a_model_without_a_tokenizer_speaks_in_bytes(tmp_path: Path) -> None:
    tokenizer = RandomCheckpoint(described(tmp_path, "Llama", {})).tokenizer()
    ids = tokenizer.encode("naïve 日本")
    assert len(ids) == len("naïve 日本".encode())
    assert tokenizer.decode(ids) == "naïve 日本"
    with pytest.raises(ModelNotFound, match=r"config\.json is missing"):
        open_checkpoint(tmp_path / "..", LoadFormat.DUMMY)


def test_a_worker_serves_random_weights(tmp_path: Path) -> None:
    folder = described(tmp_path / "model", "Llama", {"vocab_size": 300})
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 3
    launch = smollm2_launch(folder, layers=LayerRange(first=0, last=3), max_context_tokens=128)
    with WorkerProcess(launch, tmp_path, PLIMSOLL_LOAD_FORMAT="dummy") as worker:
        worker.wait_until_ready()
        answer = httpx.post(
            f"{worker.url}/v1/completions",
            json={"model": "smollm2", "prompt": "Hello", "max_tokens": 4, "ignore_eos": True},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 4
        assert "event=Loading percent=100" in worker.log
