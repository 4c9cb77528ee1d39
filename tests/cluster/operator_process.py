"""The operator as a process of its own, so that a test can kill it like a node that loses power."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.ports import held_port

ENDED_SECONDS = 150
"""It ends at once, also one that has writes on their way; a busy machine takes longer."""


class OperatorProcess:
    """`python -m plimsoll` against a kubeconfig. Started at once; its log is appended to `log`."""

    MODULE = "plimsoll"

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        self.log = log
        self._health, self._metrics = held_port(self), held_port(self)
        environment = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "PLIMSOLL_NAMESPACE": "default",
            # A test's operators follow each other: the next need not wait for the Lease of the killed one.
            "PLIMSOLL_IDENTITY": "test",
            "PLIMSOLL_HEALTH_PORT": str(self._health),
            "PLIMSOLL_METRICS_PORT": str(self._metrics),
            **{f"PLIMSOLL_{name.upper()}": value for name, value in settings.items()},
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.MODULE], env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said. May be called twice."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=ENDED_SECONDS)

    def suspend(self) -> None:
        """SIGSTOP: it neither runs nor ends, like the process of a machine that hangs."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, as a kubelet would; the exit code."""
        self._process.terminate()
        return self._process.wait(timeout=ENDED_SECONDS)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ready(self) -> bool:
        """Whether every feed is synced."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
