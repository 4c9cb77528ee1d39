"""The benchmark runs and tells what it says it tells. Its figures are a card's matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll_worker.bench.offline import Run, uniform_requests
from plimsoll_worker.engine.sequence import FinishReason, TokenEvent


def test_a_small_run_writes_every_key(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = {"context": 96, "sequences": 4, "batched-tokens": 64, "kv-tokens": 512, "block-size": 16}
    small = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, "-m", "plimsoll_worker.bench", "offline", "--shape", "tiny", "--device", "cpu"]
    ran = subprocess.run(
        [*command, *small, "--cases", "prefill-8192", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    assert json.loads(ran.stdout) == found
    assert list(found["start"]) == ["imported", "weightsMade", "compiled", "warmedUp", "firstToken"]
    assert found["versions"]["device"] == "CPU"
    assert found["memory"]["kvCacheTokens"] == 512
    assert {"promptTokens", "seconds", "all", "took"} == found["cases"]["prefill-8192"].keys()
    assert len(found["cases"]["prefill-8192"]["all"]) == 3


def test_the_uniform_workload_is_the_published_one() -> None:
    requests = uniform_requests()
    assert len(requests) == 256
    assert sum(request.prompt for request in requests) == 142_827
    assert sum(request.answer for request in requests) == 133_966


def test_only_the_time_in_which_all_decode_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0])
    monkeypatch.setattr("plimsoll_worker.bench.offline.time.perf_counter", lambda: next(now))
    run = Run(2)
    first, second = run.hearer(), run.hearer()
    for hear in (first, first, second, first, second, second):
        hear(TokenEvent(1))
    first(TokenEvent(1, FinishReason.LENGTH))
    second(TokenEvent(1))
    assert run.decode_rate == 4 / 2.0
