"""The time of the API server, as its answers tell it.

What the operator compares moments with (when a pod was created, since when the scheduler finds no place) was
written by the control plane. A machine whose own clock is an hour off, or is set right while the operator
runs, would see every inspection time out at once and every deadline either passed or never. So the operator
asks no wall clock: between two answers the monotonic clock goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

JUMP_SECONDS = 5.0
"""The header has whole seconds, cut off, and an answer may have waited for a busy thread: what lies closer
behind is this, and not a server whose clock was set back."""


class ServerClock:
    """`heard` is called with the Date header of each answer (RFC 9110, 6.6.1), `now` by everybody."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._lead: float | None = None
        """Seconds since 1970 less the monotonic clock's."""

    def heard(self, date: str | None) -> None:
        """A header that is missing or odd, as a proxy may send it, tells nothing."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        with self._lock:
            lead = told - self._monotonic()
            if self._lead is None or not self._lead - JUMP_SECONDS < lead <= self._lead:
                self._lead = lead

    def now(self) -> datetime:
        """Before the first answer: this machine's own time."""
        with self._lock:
            lead = self._lead
        seconds = self._wall() if lead is None else lead + self._monotonic()
        return datetime.fromtimestamp(seconds, UTC)
