"""Ends the process when a step never does.

A kernel that hangs, or a driver that waits for a card that fell off the bus, holds the engine's thread in a
call that no exception leaves. The pod would stay ready and answer nobody; a liveness probe would end it
without a reason. So another thread looks at how long the step at hand has taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

STUCK_SECONDS = 25.0
"""No step of a GPU takes so long, compiling a kernel on its first use included; the promise is to end within
30 s."""
LOOK_EVERY_SECONDS = 1.0


class Watchdog:
    """Calls `stuck(seconds)` once when `busy_seconds()` passes `limit`."""

    def __init__(
        self,
        busy_seconds: Callable[[], float],
        stuck: Callable[[float], None],
        *,
        limit: float = STUCK_SECONDS,
        every: float = LOOK_EVERY_SECONDS,
    ) -> None:
        self._busy_seconds = busy_seconds
        self._stuck = stuck
        self._limit = limit
        self._every = every
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._every):
            seconds = self._busy_seconds()
            if seconds > self._limit:
                self._stuck(seconds)
                return
