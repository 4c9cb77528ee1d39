"""A real worker in a process of its own, as a pod would run it, and launches to give to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx
from tests.ports import held_port

from plimsoll_worker.launch import (
    Device,
    ExitReason,
    Launch,
    LayerRange,
    Precision,
    PredictedMemory,
    WeightsScheme,
)

READY_SECONDS = 300
MIB = 2**20
SMOLLM2_KV_BYTES_PER_TOKEN = 2 * 30 * 3 * 64 * 4


def smollm2_launch(path: Path, **changes: object) -> Launch:
    """A launch for SmolLM2-135M in FP32 on the CPU; `changes` are fields of Launch."""
    context = 512
    kv_cache_bytes = 4 * context * SMOLLM2_KV_BYTES_PER_TOKEN
    launch = Launch(
        plan_id="plan-1",
        revision="smollm2-1",
        model_path=str(path),
        served_name="smollm2",
        device=Device.CPU,
        weights=WeightsScheme.plain(Precision.FP32),
        kv_cache=Precision.FP32,
        layers=LayerRange(first=0, last=30),
        max_context_tokens=context,
        max_concurrent_sequences=4,
        max_batched_tokens=128,
        kv_cache_bytes=kv_cache_bytes,
        line=4096 * MIB,
        predicted=PredictedMemory(
            weights=538060032,
            kv_cache=kv_cache_bytes,
            activations=64 * MIB,
            cuda_graphs=0,
            communication=0,
            runtime=640 * MIB,
            fragmentation=0,
        ),
    )
    return launch.model_copy(update=changes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `holds`; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.02)


class WorkerProcess:
    """`python -m plimsoll_worker` with a launch in its environment."""

    def __init__(self, launch: Launch | str, folder: Path, **environ: str) -> None:
        self.serving_port, self.admin_port = held_port(self), held_port(self)
        self.url = f"http://127.0.0.1:{self.serving_port}"
        self._termination_log = folder / "termination-log"
        self._termination_log.touch()
        self._log = folder / "worker.log"
        self._environ = {
            **os.environ,
            "PLIMSOLL_LAUNCH": launch if isinstance(launch, str) else launch.to_json(),
            "PLIMSOLL_SERVING_PORT": str(self.serving_port),
            "PLIMSOLL_ADMIN_PORT": str(self.admin_port),
            "PLIMSOLL_TERMINATION_LOG": str(self._termination_log),
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "plimsoll_worker"], env=self._environ, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def exit_reason(self) -> ExitReason | None:
        return ExitReason.parse(self._termination_log.read_text(encoding="utf-8"))

    def health(self) -> int | None:
        """Status of /health; None: nobody listens."""
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code
        except httpx.TransportError:
            return None

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log
            return self.health() == 200

        wait_for(ready, READY_SECONDS, "the worker is ready")

    def wait_until_listening(self) -> None:
        wait_for(lambda: self.health() is not None, READY_SECONDS, "the worker listens")

    def metric(self, name: str, labels: str = 'model_name="smollm2"') -> float:
        """Value of one sample of /metrics."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        line = next(line for line in text.splitlines() if line.startswith(f"{name}{{{labels}}}"))
        return float(line.rsplit(" ", 1)[1])

    def terminate(self) -> None:
        """SIGTERM, as the kubelet does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as the kernel does."""
        assert self._process is not None
        self._process.kill()

    def wait(self, seconds: float) -> int:
        """Exit code."""
        assert self._process is not None
        return self._process.wait(timeout=seconds)
