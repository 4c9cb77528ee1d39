"""`plimsoll estimate` as a user runs it: the JSON contract, the table, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dev.hub.repository import Access
from dev.hub.server import TOKEN, serve
from dev.hub.well_known import WELL_KNOWN, well_known
from tests.unit.model.published import config_of, rows
from tests.unit.worker.quant.gguf_files import written

from plimsoll.cli.main import main
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return Answer(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    def write(name: str = "meta-llama/Llama-3.1-8B-Instruct", **changes: object) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**WELL_KNOWN[name], **changes}), encoding="utf-8")
        return str(path)

    return write


def test_the_json_is_the_contract(run: Run, config: Callable[..., str]) -> None:
    answer = run("estimate", config(), "--max-context", "4096", "--sequences", "4", "-o", "json")
    assert answer.code == 0
    data = answer.data
    assert data["apiVersion"] == "plimsoll.dev/v1alpha1"
    assert data["model"] == {
        "architecture": "llama",
        "parameters": 8_030_261_248,
        "checkpointBytes": 16_060_522_496,
        "loadedBytes": 16_060_522_496,
        "kvBytesPerToken": 131_072,
        "kvBytesPerSequence": 0,
        "maxPosition": 131_072,
    }
    (gpu,) = data["perGPU"]
    assert (gpu["stage"], gpu["rank"]) == (0, 0)
    assert list(gpu["bytes"]) == [
        "weights", "kvCache", "activations", "cudaGraphs", "communication", "runtime", "fragmentation",
    ]  # fmt: skip
    assert gpu["bytes"]["kvCache"] == 131_072 * 4096 * 4
    assert gpu["total"] == sum(gpu["bytes"].values())
    assert data["warnings"] == []


def test_yaml_says_the_same(run: Run, config: Callable[..., str]) -> None:
    source = config()
    assert (
        yaml.safe_load(run("estimate", source, "-o", "yaml").out)
        == run("estimate", source, "-o", "json").data
    )


def test_every_rank_of_every_stage_is_listed(run: Run, config: Callable[..., str]) -> None:
    data = run("estimate", config(), "--tensor-parallel", "2", "--pipeline-parallel", "2", "-o", "json").data
    assert [(gpu["stage"], gpu["rank"]) for gpu in data["perGPU"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert data["perGPU"][0]["bytes"]["communication"] > 0


def test_precisions_change_what_is_loaded_and_say_when_they_lose(
    run: Run, config: Callable[..., str]
) -> None:
    source = config(torch_dtype="float32")
    exact = run("estimate", source, "-o", "json").data
    rounded = run("estimate", source, "--weights", "BF16", "--kv-cache", "FP32", "-o", "json").data
    assert (
        exact["model"]["loadedBytes"]
        == 2 * rounded["model"]["loadedBytes"]
        == exact["model"]["checkpointBytes"]
    )
    assert exact["model"]["kvBytesPerToken"] == rounded["model"]["kvBytesPerToken"] == 262_144
    assert rounded["warnings"] == ["BF16 rounds weights: the checkpoint is exact in FP32 only"]


def test_a_gguf_file_is_estimated_at_the_bytes_that_a_worker_keeps(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {"": "Q4_K", "attn_v": "Q6_K", "ffn_down": "Q5_K"})
    data = run("estimate", str(path), "-o", "json").data
    loaded = load_model(
        open_checkpoint(path), device=torch.device("cpu"), precision=Precision.BF16, as_stored=True
    ).weight_bytes
    assert data["model"]["loadedBytes"] == data["perGPU"][0]["bytes"]["weights"] == loaded
    assert "keeps the matrices of this GGUF file's layers, number by number" in data["warnings"][0]
    widened = run("estimate", str(path), "--weights", "BF16", "-o", "json").data
    assert widened["model"]["loadedBytes"] == 2 * widened["model"]["parameters"]
    table = run("estimate", str(path)).out
    assert "weights gguf" in table
    assert "B kept in BF16)" in " ".join(table.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (["--weights", "FP16"], {}, "FP16 does not hold every BF16 value"),
        (["--max-context", "200000"], {}, "context 200000 is longer than the 131072 tokens"),
        (["--tensor-parallel", "16"], {}, "16 ranks share 8 KV heads: each is held 2 times"),
    ],
    ids=["range", "context", "replicated"],
)
def test_what_would_surprise_later_is_said(
    run: Run, config: Callable[..., str], arguments: Sequence[str], changes: dict[str, object], words: str
) -> None:
    (warning,) = run("estimate", config(**changes), *arguments, "-o", "json").data["warnings"]
    assert words in warning


def test_quantizing_on_load_is_sized_and_said(run: Run, config: Callable[..., str]) -> None:
    source = config()
    arguments = ["estimate", source, "--weights", "INT8", "--kv-cache", "FP8"]
    data = run(*arguments, "-o", "json").data
    assert data["model"]["loadedBytes"] == data["perGPU"][0]["bytes"]["weights"] == 9_083_953_152
    assert data["model"]["kvBytesPerToken"] == 65_536
    assert data["warnings"] == [
        "INT8 rounds the matrices of the layers; everything else is kept in BF16",
    ]
    table = " ".join(run(*arguments).out.split())
    assert "weights INT8, the rest BF16, KV cache FP8" in table


def test_native_is_what_is_taken_when_nothing_is_asked(run: Run, config: Callable[..., str]) -> None:
    source = config()
    asked = run("estimate", source, "--weights", "Native", "--kv-cache", "Native", "-o", "json").data
    assert asked == run("estimate", source, "-o", "json").data


def test_a_sliding_window_is_told_per_sequence(run: Run, config: Callable[..., str]) -> None:
    source = config("mistralai/Mistral-7B-Instruct-v0.3", sliding_window=4096)
    data = run("estimate", source, "-o", "json").data
    assert (data["model"]["kvBytesPerToken"], data["model"]["kvBytesPerSequence"]) == (0, 4096 * 131_072)
    assert data["warnings"] == ["this engine version keeps layers with a sliding window in full"]


def test_the_table_shows_every_term_and_the_card(run: Run, config: Callable[..., str]) -> None:
    answer = run("estimate", config(), "--gpu", "H100")
    assert answer.code == 0
    for words in ("8,030,261,248 parameters", "65536 tokens × 32", "fits: 24.81 GiB of 79.65 GiB"):
        assert words in " ".join(answer.out.split())
    bar = next(line for line in answer.out.splitlines() if line.startswith("WW"))
    assert bar.count("|") == 1
    assert len(bar) == 61


@pytest.mark.parametrize("gpu", ["L4", "NVIDIA-L4", "24Gi", "24000000000"])
def test_what_does_not_fit_ends_with_3_and_the_bytes(run: Run, config: Callable[..., str], gpu: str) -> None:
    answer = run("estimate", config(), "--gpu", gpu, "-o", "json")
    assert answer.code == 3
    assert answer.data["perGPU"][0]["total"] > 0
    assert "does not fit: stage 0 needs 24.81 GiB a GPU" in answer.err


def test_a_bar_that_is_too_full_grows_past_its_line(run: Run, config: Callable[..., str]) -> None:
    answer = run("estimate", config(), "--gpu", "L4")
    bar = next(line for line in answer.out.splitlines() if line.startswith("WW"))
    assert "." not in bar
    assert "does not fit: 24.81 GiB of 22.49 GiB" in answer.out


REFUSED = {
    "no such file": (["nowhere.gguf"], 2, "nowhere.gguf: no such file"),
    "unknown GPU": (["{config}", "--gpu", "Voodoo2"], 2, "'Voodoo2' is no product"),
    "bad bytes": (["{config}", "--gpu", "24Gib"], 2, "is not a quantity"),
    "no bytes": (["{config}", "--gpu", "0"], 2, "less than one byte"),
    "a precision that is not kept": (["{config}", "--weights", "INT3"], 2, "INT3"),
    "no sequences": (["{config}", "--sequences", "0"], 2, "than or equal to 1"),
    "unknown option": (["{config}", "--colour"], 2, "--colour"),
    "heads do not divide": (["{config}", "--tensor-parallel", "3"], 3, "32 attention heads do not divide by"),
    "a cut through groups": (
        ["{config}", "--weights", "INT4", "--tensor-parallel", "32"],
        3,
        "INT4 keeps a scale for 128 columns",
    ),
    "more stages than layers": (["{config}", "--pipeline-parallel", "64"], 3, "64 pipeline stages for 32"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_has_its_code_and_its_reason(
    run: Run, config: Callable[..., str], arguments: Sequence[str], code: int, words: str
) -> None:
    path = config()
    answer = run("estimate", *(argument.format(config=path) for argument in arguments))
    assert answer.code == code
    assert words in answer.err


def test_a_hub_repository_is_estimated_by_its_headers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve([well_known("meta-llama/Llama-3.1-405B-Instruct", Access.GATED)]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        source = "hf://meta-llama/Llama-3.1-405B-Instruct"
        refused = run("estimate", source)
        assert refused.code == 2
        assert "gated" in refused.err
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        answer = run("estimate", source, "--tensor-parallel", "8", "--pipeline-parallel", "2", "-o", "json")
        assert answer.data["model"]["checkpointBytes"] == 811_706_777_600
        assert len(answer.data["perGPU"]) == 16


def test_a_repository_in_a_format_that_is_not_loaded_is_counted_as_stored_and_said_not_to_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve([well_known("openai/gpt-oss-20b")]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        stored = run("estimate", "hf://openai/gpt-oss-20b", "-o", "json").data
        widened = run("estimate", "hf://openai/gpt-oss-20b", "--weights", "BF16", "-o", "json").data
    model = stored["model"]
    assert model["checkpointBytes"] == model["loadedBytes"] == 13_761_264_768
    assert (model["kvBytesPerToken"], model["kvBytesPerSequence"]) == (24_576, 128 * 24_576)
    assert any("does not load this checkpoint" in note for note in stored["warnings"])
    assert any("does not run gpt_oss" in note for note in stored["warnings"])
    assert widened["model"]["loadedBytes"] == 2 * model["parameters"]


def test_what_stays_in_the_files_is_told(run: Run, tmp_path: Path) -> None:
    published = rows()
    for name, words in (
        ("google/gemma-3-4b-it", "vision tower"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "further tokens (MTP)"),
    ):
        (tmp_path / "config.json").write_bytes(config_of(published[name]))
        answer = run("estimate", str(tmp_path / "config.json"), "-o", "json").data
        assert answer["model"]["loadedBytes"] == 2 * int(published[name]["params_loaded_text"])
        assert any(words in note for note in answer["warnings"])


def test_a_latent_is_whole_on_every_rank(run: Run, tmp_path: Path) -> None:
    row = next(row for name, row in rows().items() if name.startswith("deepseek-ai/DeepSeek-V3"))
    (tmp_path / "config.json").write_bytes(config_of(row))
    answers = [
        run("estimate", str(tmp_path / "config.json"), "--tensor-parallel", tensor, "-o", "json").data
        for tensor in ("1", "8")
    ]
    caches = {answer["perGPU"][0]["bytes"]["kvCache"] for answer in answers}
    assert caches == {8 * 8192 * 70_272}


def test_the_version_is_told(run: Run) -> None:
    from plimsoll import __version__

    assert run("--version").out.strip() == __version__
