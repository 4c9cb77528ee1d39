"""Posts events in the background: no pod waits for words.

A queue of its own, because an event is the one write that nothing depends on: when the API server is slow or
away, events wait, and when too many wait the oldest are dropped and counted. What they tell stands in the
status as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from plimsoll import metrics
from plimsoll.actuate import events
from plimsoll.actuate.ownership import Owner
from plimsoll.cluster import kube as api
from plimsoll.cluster.calm import Calm
from plimsoll.cluster.informer import Backoff
from plimsoll.cluster.observed import EmitEvent

log = logging.getLogger(__name__)

WAITING = 2000
"""About what 500 resources that come at once have to tell."""
THREADS = 2


class Recorder:
    """`tell` from any thread. `instance` is this program's pod."""

    def __init__(
        self, kube: api.Kube, instance: str, calm: Calm, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._kube, self._instance, self._calm, self._monotonic = kube, instance, calm, monotonic
        self._waiting: deque[tuple[float, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self.run, name=f"events-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def tell(self, owner: Owner, event: EmitEvent, now: datetime) -> None:
        body = events.event(owner, event.reason, event.message, now, self._instance, warning=event.warning)
        with self._changed:
            if len(self._waiting) == WAITING:
                self._waiting.popleft()
                metrics.EVENTS_DROPPED.inc()
            self._waiting.append((self._monotonic(), body))
            self._changed.notify()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """What waits is posted first, unless the API server does not take it."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(api.READ_SECONDS)

    def run(self) -> None:
        backoff = Backoff()
        while waiting := self._next():
            told_at, body = waiting
            if not self._stopped.is_set():
                self._calm.wait(told_at)
            try:
                self._kube.create(api.EVENTS, body["metadata"]["namespace"], body)
                backoff.reset()
            except api.Unavailable as error:
                log.info("event %s waits: %s", body["reason"], error.message)
                if self._stopped.is_set():
                    return
                with self._changed:
                    self._waiting.appendleft(waiting)
                self._stopped.wait(backoff.next())
            except api.KubeError as error:
                # Posted by an earlier try whose answer was lost, or its namespace is going.
                log.info("event %s is not posted: %s", body["reason"], error.message)
            except Exception:
                # The thread has others to post.
                log.exception("event %s is not posted", body["reason"])

    def _next(self) -> tuple[float, dict[str, Any]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped.is_set())
            return self._waiting.popleft() if self._waiting else None
