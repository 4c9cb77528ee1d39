"""Reads /report of workers that turned ready: in a few threads, off the planner's path, bounded in time and
size.

A report comes from a pod that its user controls, so nothing about it is trusted: a slow, endless or malformed
answer becomes a sentence.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from plimsoll.cluster.observed import ReportAnswer
from plimsoll.cluster.own_pods import OwnPod
from plimsoll.cluster.resource import sentence
from plimsoll_worker.launch import ADMIN_PORT, Report

log = logging.getLogger(__name__)

SECONDS = 2.0
BYTES = 64 * 1024
FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
REFRESH_SECONDS = 300.0
THREADS = 4


def read_report(address: str, *, port: int = ADMIN_PORT, seconds: float = SECONDS) -> ReportAnswer:
    """The report of the worker at `address`, or why there is none."""
    deadline = time.monotonic() + seconds
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", "/report", headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return ReportAnswer(None, f"/report on port {port} answered {response.status}")
        body = b""
        while chunk := response.read1(16384):
            body += chunk
            if len(body) > BYTES:
                return ReportAnswer(None, f"/report on port {port} is larger than {BYTES} bytes")
            if time.monotonic() > deadline:
                return ReportAnswer(None, f"/report on port {port} took longer than {seconds:g} s")
        return ReportAnswer(Report.model_validate_json(body))
    except ValidationError as error:
        return ReportAnswer(None, f"/report on port {port} is no report: {sentence(error, 'report')}")
    except (OSError, http.client.HTTPException) as error:
        return ReportAnswer(None, f"/report on port {port} cannot be read: {error or type(error).__name__}")
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Asked:
    """When a pod is asked next, and how often it has not answered."""

    again_at: float
    failures: int
    restarts: int


class Reports:
    """What ready workers said. `on_answer` is called when an answer differs from the one before."""

    def __init__(
        self,
        on_answer: Callable[[], None],
        *,
        read: Callable[[str], ReportAnswer] = read_report,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_answer, self._read, self._monotonic = on_answer, read, monotonic
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="report")
        self._lock = threading.Lock()
        self._answers: dict[str, ReportAnswer] = {}
        self._asked: dict[str, Asked] = {}

    def answers(self) -> Mapping[str, ReportAnswer]:
        with self._lock:
            return dict(self._answers)

    def ask(self, pods: Iterable[OwnPod]) -> None:
        """Ask those of the ready workers whose answer is missing, old, or of a container that restarted
        since. What pods that are not among `pods` said is forgotten."""
        now = self._monotonic()
        with self._lock:
            living = {pod.uid: pod for pod in pods}
            self._answers = {uid: answer for uid, answer in self._answers.items() if uid in living}
            self._asked = {uid: asked for uid, asked in self._asked.items() if uid in living}
            due = [pod for pod in living.values() if self._is_due(pod, now)]
            for pod in due:
                failures = asked.failures if (asked := self._asked.get(pod.uid)) else 0
                # Not again while this one is on its way.
                self._asked[pod.uid] = Asked(now + LONGEST_RETRY_SECONDS, failures, pod.container.restarts)
        for pod in due:
            self._pool.submit(self._fetch, pod)

    def _is_due(self, pod: OwnPod, now: float) -> bool:
        asked = self._asked.get(pod.uid)
        return asked is None or now >= asked.again_at or asked.restarts != pod.container.restarts

    def _fetch(self, pod: OwnPod) -> None:
        answer = self._read(pod.address)
        now = self._monotonic()
        with self._lock:
            asked = self._asked.get(pod.uid)
            if asked is None:
                return
            failures = 0 if answer.report else asked.failures + 1
            pause = min(FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10), LONGEST_RETRY_SECONDS)
            again = now + (REFRESH_SECONDS if answer.report else pause)
            self._asked[pod.uid] = Asked(again, failures, pod.container.restarts)
            changed = self._answers.get(pod.uid) != answer
            self._answers[pod.uid] = answer
        if changed:
            log.info("report of pod %s/%s: %s", pod.namespace, pod.name, answer.problem or "read")
            self._on_answer()

    def next_due(self) -> float | None:
        """When the next pod wants to be asked again, on the monotonic clock."""
        with self._lock:
            return min((asked.again_at for asked in self._asked.values()), default=None)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
