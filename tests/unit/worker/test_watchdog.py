"""A step that never ends is noticed, a long life of short ones is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.unit.worker.processes import smollm2_launch

from plimsoll_worker.engine.watchdog import Watchdog
from plimsoll_worker.launch import ExitReason


def test_a_stuck_step_is_told_once_with_its_seconds() -> None:
    told: list[float] = []
    heard = threading.Event()

    def stuck(seconds: float) -> None:
        told.append(seconds)
        heard.set()

    busy = iter([0.0, 3.0, 0.1, 31.0])
    watchdog = Watchdog(lambda: next(busy), stuck, limit=25, every=0.001)
    watchdog.start()
    assert heard.wait(30)
    watchdog.close()
    assert told == [31.0]


def test_short_steps_are_left_alone() -> None:
    looked = threading.Semaphore(0)

    def busy() -> float:
        looked.release()
        return 0.5

    watchdog = Watchdog(busy, lambda seconds: pytest.fail(f"{seconds} s"), limit=25, every=0.001)
    watchdog.start()
    for _ in range(20):
        assert looked.acquire(timeout=30)
    watchdog.close()


@pytest.mark.parametrize("told", ["", "the first reason"])
def test_the_process_ends_with_its_reason(tmp_path: Path, told: str) -> None:
    log = tmp_path / "termination-log"
    log.write_text(told)
    launch = smollm2_launch(Path("model.gguf"))
    script = (
        "from plimsoll_worker import serving; from plimsoll_worker.launch import Launch; "
        "serving.end_now(Launch.from_env(), serving._stuck(26.4))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PLIMSOLL_LAUNCH": launch.to_json(), "PLIMSOLL_TERMINATION_LOG": str(log)},
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == 1
    if told:
        assert log.read_text() == told
    else:
        reason = ExitReason.parse(log.read_text())
        assert reason is not None
        assert "a step has taken 26 s" in reason.message
