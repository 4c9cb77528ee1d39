"""The operator as a process of its own, as a cluster would run it, to be started, asked and killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
READY_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OperatorProcess:
    """`python -m plimsoll` with a kubeconfig and settings; its log is in `log`."""

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        self.log = log
        self.metrics_port = free_port()
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "PLIMSOLL_METRICS_PORT": str(self.metrics_port),
            "PLIMSOLL_HEALTH_PORT": str(free_port()),
            **settings,
        }
        self.health_port = int(environment["PLIMSOLL_HEALTH_PORT"])
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "plimsoll"],
                env=environment,
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
            )

    def wait_ready(self) -> OperatorProcess:
        """Until every feed was listed."""
        deadline = time.monotonic() + READY_SECONDS
        while self.page("/readyz")[0] != 200:
            assert self._process.poll() is None, f"the operator ended: {self.tail()}"
            assert time.monotonic() < deadline, f"the operator is not ready: {self.tail()}"
            time.sleep(0.05)
        return self

    def page(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Status and text of a page of the operator; status 0 while nobody listens."""
        try:
            url = f"http://127.0.0.1:{port or self.metrics_port}{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, line_start: str) -> float:
        """The sum of all samples whose line starts so."""
        _, text = self.page("/metrics")
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(line_start)]
        return sum(float(value) for value in values)

    def kill(self) -> None:
        """As a node's failure would: no chance to clean up."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        """As a kubelet would. The exit status."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self._process.returncode)

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]
