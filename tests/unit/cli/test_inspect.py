"""`plimsoll inspect`: facts for people, and the termination message that the operator reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dev.hub.server import serve
from dev.hub.well_known import well_known
from tests.unit.model import crafted
from tests.unit.model.crafted import F16
from tests.unit.model.test_facts import wild_mix
from tests.unit.model.test_read import checkpoint

from plimsoll import sources
from plimsoll.cli.main import main
from plimsoll.model.facts import MAX_PACKED_BYTES, InspectFailure, ModelFacts


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in checkpoint().items():
        (folder / name).write_bytes(data)
    return folder


def inspect_as_a_pod(source: str, tmp_path: Path) -> tuple[int, str]:
    message = tmp_path / "termination-log"
    code = run("inspect", source, "--output-termination-message", str(message))
    text = message.read_text(encoding="utf-8")
    assert len(text.encode()) <= 4096
    return code, text


def test_facts_are_printed_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(model)) == 0
    facts = ModelFacts.model_validate_json(capsys.readouterr().out)
    assert facts.architecture == "llama"


def test_a_pod_leaves_packed_facts(model: Path, tmp_path: Path) -> None:
    code, text = inspect_as_a_pod(str(model), tmp_path)
    assert code == 0
    assert ModelFacts.unpack(text).parameters > 0


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (
            {"model.safetensors": checkpoint()["model.safetensors"][:-1]},
            "ModelFileTruncated",
            "model.safetensors",
        ),
        (
            {"config.json": crafted.config(model_type="novel", kv_lora_rank=8)},
            "ArchitectureUnsupported",
            "'novel'",
        ),
        ({"config.json": b"{"}, "ModelFileUnreadable", "config.json: not valid JSON"),
        (
            {"config.json": crafted.config(quantization_config="awq")},
            "ModelFileUnreadable",
            "quantization_config: expected an object",
        ),
    ],
    ids=["truncated", "architecture", "config", "quantized"],
)
def test_a_definite_failure_is_an_answer(
    model: Path, tmp_path: Path, damage: dict[str, bytes], reason: str, words: str
) -> None:
    for name, data in damage.items():
        (model / name).write_bytes(data)
    code, text = inspect_as_a_pod(str(model), tmp_path)
    failure = InspectFailure.model_validate_json(text)
    assert code == 0
    assert failure.reason == reason
    assert words in failure.message


def test_a_missing_model_is_an_answer(tmp_path: Path) -> None:
    code, text = inspect_as_a_pod(str(tmp_path / "gone"), tmp_path)
    assert (code, json.loads(text)["reason"]) == (0, "ModelNotFound")


def test_facts_that_do_not_fit_are_a_reason(tmp_path: Path) -> None:
    (tmp_path / "wild.gguf").write_bytes(crafted.llama_gguf(wild_mix(400)))
    code, text = inspect_as_a_pod(str(tmp_path / "wild.gguf"), tmp_path)
    assert (code, json.loads(text)["reason"]) == (0, "FactsTooLarge")


def test_a_hub_that_does_not_answer_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve([well_known("Qwen/Qwen3-8B")]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(sources, "LONGEST_WAIT_SECONDS", 0.0)
    code, text = inspect_as_a_pod("hf://Qwen/Qwen3-8B", tmp_path)
    assert (code, json.loads(text)["reason"]) == (2, "HubUnreachable")


def test_a_message_longer_than_the_kubelet_keeps_is_shortened_and_stays_json(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for number in range(3):
        (tmp_path / "model" / f"{'long' * 60}{number}.gguf").write_bytes(crafted.llama_gguf([[F16] * 7]))
    source = str(tmp_path / "model")
    code, text = inspect_as_a_pod(source, tmp_path)
    assert code == 0
    assert InspectFailure.model_validate_json(text).reason == "FormatUnsupported"
    assert len(text) < MAX_PACKED_BYTES


def test_without_a_pod_a_failure_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(tmp_path)) == 2
    assert "no *.safetensors and no *.gguf file" in capsys.readouterr().err


def test_a_message_that_cannot_be_written_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(model), "--output-termination-message", str(model / "no" / "folder")) == 2
    assert "--output-termination-message" in capsys.readouterr().err
