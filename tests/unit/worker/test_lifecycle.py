"""A worker's start and end: what it says before it is ready, how it drains, why it refuses to serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.unit.worker.processes import (
    MIB,
    SMOLLM2_KV_BYTES_PER_TOKEN,
    WorkerProcess,
    smollm2_launch,
    wait_for,
)

from plimsoll_worker.engine.engine import QUEUED_PER_RUNNING
from plimsoll_worker.launch import ExitCode

START_SECONDS = 120
LINE = 2048 * MIB


def refusal(launch: Any, folder: Path, **environ: str) -> tuple[ExitCode, str]:
    """Run a worker that must refuse; its reason and message."""
    with WorkerProcess(launch, folder, **environ) as process:
        assert process.wait(START_SECONDS) == 1, process.log
        reason = process.exit_reason
        assert reason is not None, process.log
        return reason.reason, reason.message


def test_a_line_that_leaves_no_room_ends_the_worker_with_the_bytes(smollm2: Path, tmp_path: Path) -> None:
    code, message = refusal(smollm2_launch(smollm2, line=900 * MIB), tmp_path)
    assert code is ExitCode.MEMORY_ESTIMATE_EXCEEDED
    assert "the line of 0.879 GiB has no room for the 0.022 GiB one sequence of 512 tokens takes" in message


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


@pytest.fixture(scope="module")
def narrow(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker with an API key, one sequence at a time, and a pool planned far beyond its line."""
    launch = smollm2_launch(
        smollm2,
        max_concurrent_sequences=1,
        kv_cache_bytes=40000 * SMOLLM2_KV_BYTES_PER_TOKEN,
        line=LINE,
    )
    folder = tmp_path_factory.mktemp("narrow")
    with WorkerProcess(launch, folder, PLIMSOLL_API_KEY="s3cret") as process:
        process.wait_until_ready()
        yield process


def test_the_pool_shrinks_to_stay_under_the_line(narrow: WorkerProcess) -> None:
    report = httpx.get(f"http://127.0.0.1:{narrow.admin_port}/report", timeout=10).json()
    assert 512 <= report["kvCacheTokens"] < 40000
    assert report["kvCacheTokens"] % 16 == 0
    used = report["devices"][0]["usedBytes"]
    assert 0.97 * LINE < used <= LINE


def test_an_api_key_is_asked_for_when_set(narrow: WorkerProcess) -> None:
    models = f"{narrow.url}/v1/models"
    assert httpx.get(models, timeout=10).status_code == 401
    wrong = httpx.get(models, headers={"Authorization": "Bearer wrong"}, timeout=10)
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    client = openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="s3cret", max_retries=0)
    assert [card.id for card in client.models.list()] == ["smollm2"]
    assert httpx.get(f"{narrow.url}/metrics", timeout=10).status_code == 200


def test_more_requests_than_may_wait_are_told_to_come_back(narrow: WorkerProcess) -> None:
    url, key = f"{narrow.url}/v1/completions", {"Authorization": "Bearer s3cret"}
    body = {"model": "smollm2", "prompt": "1 2 3", "max_tokens": 1}

    def ask() -> int:
        return httpx.post(url, json=body, headers=key, timeout=120).status_code

    endless = {**body, "max_tokens": 500, "ignore_eos": True, "stream": True}
    with ThreadPoolExecutor(QUEUED_PER_RUNNING) as threads, httpx.Client(timeout=120) as client:
        running = client.send(client.build_request("POST", url, json=endless, headers=key), stream=True)
        lines = running.iter_lines()  # held: httpx closes a response whose iterator is dropped
        next(lines)
        waiting = [threads.submit(ask) for _ in range(QUEUED_PER_RUNNING)]
        wait_for(
            lambda: narrow.metric("vllm:num_requests_waiting") == QUEUED_PER_RUNNING, 20, "the queue is full"
        )
        refused = httpx.post(url, json=body, headers=key, timeout=60)
        running.close()
        assert [answer.result() for answer in waiting] == [200] * QUEUED_PER_RUNNING
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["Retry-After"]) > 0


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


def test_a_worker_told_to_end_answers_until_nobody_is_sent_to_it(smollm2: Path, tmp_path: Path) -> None:
    body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 1}
    with WorkerProcess(smollm2_launch(smollm2), tmp_path, PLIMSOLL_LINGER_SECONDS="3") as process:
        process.wait_until_ready()
        with httpx.Client(base_url=process.url, timeout=20) as client:
            before = client.post("/v1/completions", json=body)
            process.terminate()
            wait_for(lambda: "event=Leaving" in process.log, 10, "the worker heard it")
            after = client.post("/v1/completions", json=body)
        assert (before.status_code, after.status_code) == (200, 200)
        assert "connection" not in before.headers
        assert after.headers["connection"] == "close", "the next request of this client leads elsewhere"
        assert process.wait(20) == 0
        assert "event=Draining" in process.log


def test_a_draining_worker_finishes_what_runs_and_takes_nothing_new(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path, PLIMSOLL_LINGER_SECONDS="0") as process:
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
