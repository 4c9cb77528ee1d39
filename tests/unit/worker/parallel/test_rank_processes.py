"""A pod of two ranks: it answers as one process would, says why when one of them ends, and ends both."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import Pipe
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from tests.unit.worker.decoding import paged, sequence, steps
from tests.unit.worker.processes import MIB, WorkerProcess, free_port, smollm2_launch, wait_for
from tests.unit.worker.test_models import SMALL, configuration

from plimsoll_worker.errors import EngineFailed, RendezvousFailed
from plimsoll_worker.launch import (
    DeviceReport,
    ExitCode,
    Launch,
    LayerRange,
    MeasuredMemory,
    Precision,
    Rendezvous,
    Report,
    StageAddress,
)
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.memory import CpuMemory
from plimsoll_worker.parallel import rank_processes
from plimsoll_worker.parallel.rank_processes import Questions, RankProcesses
from plimsoll_worker.settings import LoadFormat

CPU = torch.device("cpu")
DEATH_SECONDS = 10
BYTES_PER_TOKEN = 2 * 3 * 1 * 8 * 4
"""Of one of two ranks: three layers, one of two KV heads of eight elements."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    configuration("Llama")(**{**SMALL, "vocab_size": 300}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def two_ranks(folder: Path, **changes: object) -> Launch:
    launch = smollm2_launch(
        folder,
        tensor_parallel=2,
        layers=LayerRange(first=0, last=3),
        max_context_tokens=128,
        kv_cache_bytes=512 * BYTES_PER_TOKEN,
        line=2048 * MIB,
    )
    return launch.model_copy(update=changes)


@pytest.fixture
def worker(folder: Path, tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(two_ranks(folder), tmp_path, PLIMSOLL_LOAD_FORMAT="dummy") as process:
        process.wait_until_ready()
        yield process


def rank_of(worker: WorkerProcess) -> psutil.Process:
    """The second one."""
    children = psutil.Process(worker.pid).children()
    return next(child for child in children if "plimsoll_worker.parallel.rank" in child.cmdline())


PROMPT = (40, 41, 42, 43, 44, 45, 46, 47)


def answer(worker: WorkerProcess) -> str:
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    text: str = httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    return text


def expected_answer(folder: Path) -> str:
    """Of the whole model in this process."""
    checkpoint = open_checkpoint(folder, LoadFormat.DUMMY)
    runner = paged(load_model(checkpoint, device=CPU, precision=Precision.FP32), blocks=16)
    tokens = []
    for waiting, logits in steps(runner, [sequence(PROMPT, max_tokens=12)], max_batched_tokens=64):
        tokens.append(int(logits.argmax()))
        waiting.append(tokens[-1])
    return checkpoint.tokenizer().decode(tokens)


def test_two_stages_of_two_ranks_answer_as_one(folder: Path, tmp_path: Path) -> None:
    meeting = Rendezvous(
        stages=tuple(StageAddress(host="127.0.0.1", port=free_port()) for _ in range(2)), seconds=120
    )
    with ExitStack() as stack:
        pods = []
        for number, (first, last) in enumerate(((0, 1), (1, 3))):
            own = tmp_path / str(number)
            own.mkdir()
            launch = two_ranks(
                folder,
                pipeline_parallel=2,
                stage=number,
                layers=LayerRange(first=first, last=last),
                rendezvous=meeting,
            )
            pods.append(stack.enter_context(WorkerProcess(launch, own, PLIMSOLL_LOAD_FORMAT="dummy")))
        for pod in pods:
            pod.wait_until_ready()
        assert [answer(pods[0]) for _ in range(2)] == [expected_answer(folder)] * 2


def test_it_answers_reports_both_devices_and_ends_in_order(worker: WorkerProcess, folder: Path) -> None:
    assert [answer(worker) for _ in range(2)] == [expected_answer(folder)] * 2

    report = Report.model_validate_json(
        httpx.get(f"http://127.0.0.1:{worker.admin_port}/report", timeout=30).content
    )
    assert report.tensor_parallel == 2
    assert [device.rank for device in report.devices] == [0, 1]
    for device in report.devices:
        assert 0 < device.bytes.weights < 2 * MIB
        assert device.bytes.kv_cache == 512 * BYTES_PER_TOKEN

    rank = rank_of(worker)
    worker.terminate()
    assert worker.wait(30) == 0, worker.log
    assert not rank.is_running()
    assert worker.exit_reason is None


def test_the_death_of_a_rank_ends_the_pod_with_a_reason(worker: WorkerProcess) -> None:
    os.kill(rank_of(worker).pid, signal.SIGKILL)
    assert worker.wait(DEATH_SECONDS) == 1
    reason = worker.exit_reason
    assert reason is not None
    assert reason.reason is ExitCode.ENGINE_FAILED
    assert "rank 1 of tensor parallel 2 was killed by signal 9" in reason.message


def test_the_death_of_the_first_ends_the_other(worker: WorkerProcess) -> None:
    rank = rank_of(worker)
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: not rank.is_running(), DEATH_SECONDS, "the second rank has ended")


def test_a_rank_that_never_comes_is_refused_before_anything_is_loaded(folder: Path) -> None:
    with (
        pytest.raises(RendezvousFailed, match=r"rank 1 has not come within 120 s of its start"),
        RankProcesses(two_ranks(folder), died=lambda _: None) as ranks,
    ):
        ranks.gather(CpuMemory(), seconds=0)


def test_a_rank_that_ends_before_it_comes_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIMSOLL_LAUNCH", "{}")
    told: list[str] = []
    with (
        pytest.raises(EngineFailed, match="rank 1 has ended"),
        RankProcesses(two_ranks(folder), died=told.append) as ranks,
    ):
        ranks.gather(CpuMemory())
    assert told == ["rank 1 of tensor parallel 2 ended with exit code 1; what it said last is in the log"]


def test_a_late_report_is_not_taken_for_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_processes, "REPORT_SECONDS", 0.01)
    ours, ranks = Pipe()
    questions = Questions(ours)
    nothing = MeasuredMemory(**dict.fromkeys(MeasuredMemory.model_fields, 0))
    answers = [
        DeviceReport(rank=1, product="CPU", total_bytes=9, used_bytes=used, bytes=nothing) for used in (1, 2)
    ]
    assert questions.report() is None
    assert questions.report() is None, "it owes an answer"
    ranks.send_bytes(answers[0].to_json().encode())
    assert questions.report() is None, "of the first question"
    assert [ranks.recv_bytes() for _ in range(2)] == [rank_processes.REPORT] * 2
    assert not ranks.poll(), "asked twice, once for each answer"
    ranks.send_bytes(answers[0].to_json().encode())
    monkeypatch.setattr(rank_processes, "REPORT_SECONDS", 5)
    ranks.send_bytes(answers[1].to_json().encode())
    assert questions.report() == answers[1]
    ranks.close()
    assert questions.report() is None
