"""An operator process that can be asked: its pages, its metrics, the end of its log."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.operator_process import OperatorProcess

REPOSITORY = Path(__file__).parents[3]
READY_SECONDS = 300.0
"""It takes two on a quiet machine."""
ROUNDS = 'plimsoll_rounds_total{result="done"}'


class Operator(OperatorProcess):
    def wait_ready(self, seconds: float = READY_SECONDS) -> Operator:
        """Until every feed was listed."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            assert self.running, f"the operator ended: {self.tail()}"
            assert time.monotonic() < deadline, f"the operator is not ready: {self.tail()}"
            time.sleep(0.05)
        return self

    def page(self, path: str, *, health: bool = False) -> tuple[int, str]:
        """Status and text of a page; status 0 while nobody listens."""
        try:
            url = f"http://127.0.0.1:{self._health if health else self._metrics}{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, line_start: str, page: str = "/metrics") -> float:
        """The sum of all samples whose line starts so."""
        _, text = self.page(page)
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(line_start)]
        return sum(float(value) for value in values)

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]
