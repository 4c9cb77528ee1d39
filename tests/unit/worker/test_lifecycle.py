"""A worker's start and end: what it says before it is ready, how it drains, why it refuses to serve."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from plimsoll_worker.launch import Device, ExitCode, LayerRange, Precision, WeightsScheme

from tests.unit.worker.processes import (
    MIB,
    SMOLLM2_KV_BYTES_PER_TOKEN,
    WorkerProcess,
    smollm2_launch,
    wait_for,
)
from tests.unit.worker.test_models import saved

START_SECONDS = 120


def refusal(launch: Any, folder: Path, **environ: str) -> tuple[ExitCode, str]:
    """Run a worker that must refuse; its reason and message."""
    with WorkerProcess(launch, folder, **environ) as process:
        assert process.wait(START_SECONDS) == 1, process.log
        reason = process.exit_reason
        assert reason is not None, process.log
        return reason.reason, reason.message


REFUSED: dict[str, tuple[dict[str, Any], ExitCode, str]] = {
    "pool too small": (
        {"kv_cache_bytes": 511 * SMOLLM2_KV_BYTES_PER_TOKEN},
        ExitCode.MEMORY_ESTIMATE_EXCEEDED,
        "one sequence of maxContextTokens 512",
    ),
    "line too low": (
        {"line": 900 * MIB},
        ExitCode.MEMORY_ESTIMATE_EXCEEDED,
        "has no room for the",
    ),
    "layers": (
        {"layers": LayerRange(first=0, last=16)},
        ExitCode.EFFECTIVE_CONFIG_MISMATCH,
        "layers of the launch is 0-16, expected 0-30",
    ),
    "precision": (
        {"weights": WeightsScheme.plain(Precision.BF16)},
        ExitCode.EFFECTIVE_CONFIG_MISMATCH,
        "weights.name of the launch is BF16",
    ),
    "tensor parallel": (
        {"tensor_parallel": 2},
        ExitCode.EFFECTIVE_CONFIG_MISMATCH,
        "tensorParallel of the launch is 2",
    ),
    "product": (
        {"expected_product": "NVIDIA-H100-80GB-HBM3"},
        ExitCode.EFFECTIVE_CONFIG_MISMATCH,
        "expectedProduct of the launch is NVIDIA-H100-80GB-HBM3",
    ),
    "context": (
        {"max_context_tokens": 10000},
        ExitCode.EFFECTIVE_CONFIG_MISMATCH,
        "at most 8192",
    ),
    "device": (
        {"device": Device.GPU},
        ExitCode.EFFECTIVE_CONFIG_MISMATCH,
        "sees 0",
    ),
    "no model": ({"model_path": "/no/such/model"}, ExitCode.MODEL_NOT_FOUND, "/no/such/model"),
}


@pytest.mark.parametrize(("changes", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_plan_that_does_not_hold_is_refused_with_its_reason(
    changes: dict[str, Any], code: ExitCode, message: str, smollm2: Path, tmp_path: Path
) -> None:
    found, text = refusal(smollm2_launch(smollm2, **changes), tmp_path)
    assert found is code
    assert message in text


def test_a_malformed_launch_names_its_field(smollm2: Path, tmp_path: Path) -> None:
    launch = json.loads(smollm2_launch(smollm2).to_json())
    launch["maxContextTokens"] = 0
    assert refusal(json.dumps(launch), tmp_path) == (
        ExitCode.LAUNCH_INVALID,
        "PLIMSOLL_LAUNCH: maxContextTokens: Input should be greater than or equal to 1",
    )


def test_a_malformed_setting_names_its_variable(smollm2: Path, tmp_path: Path) -> None:
    code, message = refusal(smollm2_launch(smollm2), tmp_path, PLIMSOLL_DRAIN_SECONDS="2m")
    assert code is ExitCode.LAUNCH_INVALID
    assert (
        message
        == "environment variable PLIMSOLL_DRAIN_SECONDS: found '2m', expected a whole number from 0 to 86400"
    )


def test_truncated_files_end_the_worker_with_the_files_name(smollm2: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2.read_bytes()[:-1000])
    code, message = refusal(smollm2_launch(cut), tmp_path)
    assert code is ExitCode.MODEL_UNREADABLE
    assert str(cut) in message
    assert "truncated" in message

    folder = tmp_path / "model"
    saved("Llama", {}, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, message = refusal(smollm2_launch(folder), tmp_path)
    assert code is ExitCode.MODEL_UNREADABLE
    assert str(weights) in message


def test_an_unreachable_hub_is_a_failed_fetch(smollm2: Path, tmp_path: Path) -> None:
    from plimsoll_worker.launch import HubSource

    launch = smollm2_launch(tmp_path / "model", hub=HubSource(repo="org/model", commit="0" * 40))
    code, message = refusal(launch, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_DISABLE_XET="1")
    assert code is ExitCode.FETCH_FAILED
    assert message.startswith(f"org/model at {'0' * 40}: ")


def test_the_pool_shrinks_to_stay_under_the_line(smollm2: Path, tmp_path: Path) -> None:
    planned = 40000 * SMOLLM2_KV_BYTES_PER_TOKEN
    launch = smollm2_launch(smollm2, kv_cache_bytes=planned, line=2048 * MIB)
    with WorkerProcess(launch, tmp_path) as process:
        process.wait_until_ready()
        report = httpx.get(f"http://127.0.0.1:{process.admin_port}/report", timeout=10).json()
        assert 512 <= report["kvCacheTokens"] < 40000
        assert report["kvCacheTokens"] % launch.kv_block_size == 0
        assert report["devices"][0]["usedBytes"] <= launch.line


def test_an_api_key_is_asked_for_when_set(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path, PLIMSOLL_API_KEY="s3cret") as process:
        process.wait_until_listening()
        models = f"{process.url}/v1/models"
        assert httpx.get(models, timeout=10).status_code == 401
        wrong = httpx.get(models, headers={"Authorization": "Bearer wrong"}, timeout=10)
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        process.wait_until_ready()
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="s3cret", max_retries=0)
        assert [card.id for card in client.models.list()] == ["smollm2"]
        assert httpx.get(f"{process.url}/metrics", timeout=10).status_code == 200


def test_a_worker_that_starts_answers_503_and_ends_at_once_when_told(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path) as process:
        process.wait_until_listening()
        assert process.health() == 503
        body = {"model": "smollm2", "prompt": "Hi"}
        refused = httpx.post(f"{process.url}/v1/completions", json=body, timeout=10)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "starting"
        process.terminate()
        assert process.wait(20) == 0


def test_a_draining_worker_finishes_what_runs_and_takes_nothing_new(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path) as process:
        process.wait_until_ready()
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="any", max_retries=0)
        stream = client.completions.create(
            model="smollm2",
            prompt="1 2 3",
            max_tokens=60,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )
        next(stream)
        process.terminate()
        wait_for(lambda: process.health() == 503, 20, "the worker reports that it is not ready")
        with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
            client.completions.create(model="smollm2", prompt="Hi")
        assert caught.value.status_code == 503
        assert caught.value.code == "draining"
        chunks = list(stream)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 60
        assert process.wait(20) == 0
        assert "event=Exit reason=Completed" in process.log


def test_a_drain_that_takes_too_long_ends_streams_with_an_error(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path, PLIMSOLL_DRAIN_SECONDS="0") as process:
        process.wait_until_ready()
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="any", max_retries=0)
        stream = client.completions.create(
            model="smollm2", prompt="1 2 3", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        process.terminate()
        with pytest.raises(openai.APIError, match="before the answer was complete"):
            list(stream)
        assert process.wait(20) == 0


def test_more_requests_than_may_wait_are_told_to_come_back(smollm2: Path, tmp_path: Path) -> None:
    launch = smollm2_launch(smollm2, max_concurrent_sequences=1)
    statuses: list[int] = []
    retry_after: list[str] = []

    def ask(url: str) -> None:
        body = {"model": "smollm2", "prompt": "1 2 3", "max_tokens": 40, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            retry_after.append(answer.headers["Retry-After"])

    with WorkerProcess(launch, tmp_path) as process:
        process.wait_until_ready()
        threads = [threading.Thread(target=ask, args=(process.url,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses.count(200) == 9
    assert statuses.count(429) == 3
    assert all(int(seconds) > 0 for seconds in retry_after)
