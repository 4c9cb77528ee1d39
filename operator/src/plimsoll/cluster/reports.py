"""Reads /report of workers that turned ready: in a few threads, off the planner's path, bounded in time and
size.

A report comes from a pod that its user controls, so nothing about it is trusted: a slow, endless or malformed
answer becomes a sentence.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

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


class _Hurried(socket.socket):
    """Reads until a deadline. A time-out alone begins anew with each byte, so who sends a header a byte at a
    time would hold a thread for ever."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        super().__init__(fileno=connected.detach())
        self.settimeout(seconds)
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def recv_into(self, *args: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"took longer than {self._seconds:g} s")
        self.settimeout(left)
        try:
            return super().recv_into(*args)
        except TimeoutError:
            raise TimeoutError(f"took longer than {self._seconds:g} s") from None


def read_report(address: str, *, port: int = ADMIN_PORT, seconds: float = SECONDS) -> ReportAnswer:
    """The report of the worker at `address`, or why there is none. Takes `seconds` to connect and as long to
    read, at most."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.connect()
        connection.sock = _Hurried(connection.sock, seconds)
        connection.request("GET", "/report", headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return ReportAnswer(None, f"/report on port {port} answered {response.status}")
        body = b""
        while chunk := response.read1(16384):
            body += chunk
            if len(body) > BYTES:
                return ReportAnswer(None, f"/report on port {port} is larger than {BYTES} bytes")
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
        self._living: frozenset[str] = frozenset()
        self._under_way: set[str] = set()
        """Pods that are being asked, or wait for their turn: none of them waits twice."""

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
            self._living = frozenset(living)
            due = [pod for pod in living.values() if self._is_due(pod, now)]
            self._under_way.update(pod.uid for pod in due)
        for pod in due:
            self._pool.submit(self._fetch, pod)

    def _is_due(self, pod: OwnPod, now: float) -> bool:
        if pod.uid in self._under_way:
            return False
        asked = self._asked.get(pod.uid)
        return asked is None or now >= asked.again_at or asked.restarts != pod.container.restarts

    def _fetch(self, pod: OwnPod) -> None:
        try:
            answer = self._read(pod.address)
        except Exception as error:
            log.exception("report of pod %s/%s", pod.namespace, pod.name)
            answer = ReportAnswer(None, f"/report cannot be read: {type(error).__name__}: {error}")
        now = self._monotonic()
        with self._lock:
            self._under_way.discard(pod.uid)
            if pod.uid not in self._living:
                return
            asked = self._asked.get(pod.uid)
            failures = 0 if answer.report else 1 + (asked.failures if asked else 0)
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
            waiting = (asked for uid, asked in self._asked.items() if uid not in self._under_way)
            return min((asked.again_at for asked in waiting), default=None)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
