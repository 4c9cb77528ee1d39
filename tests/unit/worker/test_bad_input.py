"""Whatever a client sends, it gets an error in OpenAI's form, and the worker goes on with nothing leaked."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.unit.worker.processes import WorkerProcess, smollm2_launch, wait_for

from plimsoll_worker.launch import ExitCode
from plimsoll_worker.server.intake import HEADER_SECONDS, MAX_BODY_BYTES

JSON_TYPE = {"Content-Type": "application/json"}
CLIENTS = 1000


@pytest.fixture(autouse=True)
def the_worker_goes_on(worker: WorkerProcess) -> Any:
    """After every test: nothing runs, no block is held, and an answer comes."""
    yield
    wait_for(lambda: worker.metric("vllm:num_requests_running") == 0, 120, "nothing runs")
    assert worker.metric("vllm:num_requests_waiting") == 0
    assert worker.metric("vllm:kv_cache_usage_perc") == 0
    body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 1}
    assert httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).status_code == 200


def completion(**fields: object) -> bytes:
    return json.dumps({"model": "smollm2", "max_tokens": 1, **fields}).encode()


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "JSON"),
    "half": (b'{"model": ', "JSON"),
    "not an object": (b"[]", "should be an object"),
    "not text": (b'{"model": "smollm2", "prompt": "\xff\xfe"}', "JSON"),
    "half a character": (b'{"model": "smollm2", "prompt": "\\ud800"}', "JSON"),
    "deep": (b'{"model": "smollm2", "prompt": ' + b"[" * 100_000, "recursion"),
    "endless number": (
        b'{"model": "smollm2", "prompt": "Hi", "seed": ' + b"9" * 10_000 + b"}",
        "number out of range",
    ),
    "NaN": (b'{"model": "smollm2", "prompt": "Hi", "temperature": NaN}', "temperature"),
    "infinity": (b'{"model": "smollm2", "prompt": "Hi", "presence_penalty": -Infinity}', "presence_penalty"),
    "overflow": (b'{"model": "smollm2", "prompt": "Hi", "top_p": 1e999}', "top_p"),
    "NaN in a bias": (b'{"model": "smollm2", "prompt": "Hi", "logit_bias": {"5": NaN}}', "logit_bias"),
    "id beyond 64 bits": (completion(prompt=[2**70]), "prompt"),
    "negative id": (completion(prompt=[-1]), "token id -1"),
    "true is no id": (completion(prompt=[True]), "prompt"),
    "mixed": (completion(prompt=["Hi", [1]]), "prompt: expected text, token ids, or a list of either"),
    "null": (completion(prompt=None), "prompt"),
    "long text": (completion(prompt="word " * 200_000), "longest context"),
    "long ids": (completion(prompt=[5] * 600), "longest context"),
}


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES.keys())
def test_a_strange_body_is_told_what_is_wrong(body: bytes, message: str, worker: WorkerProcess) -> None:
    answer = httpx.post(f"{worker.url}/v1/completions", content=body, headers=JSON_TYPE, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("announced", [True, False], ids=["by its length", "in chunks"])
def test_too_large_a_body_is_refused_unread(announced: bool, worker: WorkerProcess) -> None:
    body = completion(prompt="x" * (10 * 10**6))
    assert len(body) > MAX_BODY_BYTES
    content = body if announced else iter([body[: len(body) // 2], body[len(body) // 2 :]])
    answer = httpx.post(f"{worker.url}/v1/completions", content=content, headers=JSON_TYPE, timeout=60)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_template_that_refuses_is_the_clients_error(worker: WorkerProcess) -> None:
    # SmolLM2's template adds strings to the content of the first message; a strange variable breaks it.
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Hi"}],
        "chat_template_kwargs": {"messages": 5},
    }
    answer = httpx.post(f"{worker.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "chat template" in answer.json()["error"]["message"]


def test_a_client_that_sends_its_headers_by_drops_is_hung_up_on(worker: WorkerProcess) -> None:
    with socket.create_connection(("127.0.0.1", worker.serving_port), timeout=5) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        began = time.monotonic()
        slow.settimeout(HEADER_SECONDS + 30)
        assert slow.recv(1) == b"", "the server closes"
        assert time.monotonic() - began > HEADER_SECONDS / 2


def test_a_thousand_clients_that_vanish_leave_nothing(worker: WorkerProcess) -> None:
    body = json.dumps(
        {"model": "smollm2", "prompt": "1 2 3", "max_tokens": 400, "ignore_eos": True, "stream": True}
    ).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: worker\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    answered = 0
    for first in range(0, CLIENTS, 100):
        clients = [socket.create_connection(("127.0.0.1", worker.serving_port), 30) for _ in range(100)]
        for index, client in enumerate(clients):
            client.sendall(request if index % 10 else request[: first + 20])
        for index, client in enumerate(clients):
            if index % 10 == 1:
                answered += client.recv(64).startswith(b"HTTP/1.1")
            # Zero seconds of lingering: the kernel sends a reset, as for a process that was killed.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
    assert answered == CLIENTS // 10


def server_of(process: WorkerProcess) -> psutil.Process:
    (server,) = psutil.Process(process.pid).children()
    return server


def test_a_server_that_dies_ends_the_worker_with_a_reason(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path) as process:
        process.wait_until_listening()
        server_of(process).send_signal(signal.SIGKILL)
        assert process.wait(30) == 1
        reason = process.exit_reason
    assert reason is not None
    assert reason.reason is ExitCode.ENGINE_FAILED
    assert "HTTP server's process was killed by signal 9" in reason.message


def test_a_server_whose_worker_dies_ends_too(smollm2: Path, tmp_path: Path) -> None:
    with WorkerProcess(smollm2_launch(smollm2), tmp_path) as process:
        process.wait_until_listening()
        server = server_of(process)
        os.kill(process.pid, signal.SIGKILL)
        server.wait(60)
