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
ANSWER_SECONDS = 60.0
"""For one page; a busy machine takes its time."""
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

    def wait_rounds(self, more: int = 2, seconds: float = READY_SECONDS) -> None:
        """Until it has planned so many times more: of two, one has looked at what is now, and written all
        that its plan asks for."""
        seen, deadline = self.metric(ROUNDS), time.monotonic() + seconds
        while self.metric(ROUNDS) < seen + more:
            assert time.monotonic() < deadline, f"the operator does not plan again: {self.tail()}"
            time.sleep(0.05)

    def page(self, path: str, *, health: bool = False) -> tuple[int, str]:
        """Status and text of a page; status 0 while nobody listens."""
        try:
            url = f"http://127.0.0.1:{self._health if health else self._metrics}{path}"
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, line_start: str, page: str = "/metrics") -> float:
        """The sum of all samples whose line starts so; a page that does not come is no zero."""
        status, text = self.page(page)
        assert status == 200, f"{page} is answered with {status}: {self.tail()}"
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(line_start)]
        return sum(float(value) for value in values)

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]
