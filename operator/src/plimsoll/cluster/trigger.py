"""Wakes the planner: any number of calls become one round, soon after they cease and never long after the
first.

A burst (a roll-out, a node coming up with all its pods) would otherwise be a plan for every event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

IDLE_SECONDS = 0.1
LONGEST_SECONDS = 1.0


class Debounce:
    """The arithmetic, with the clock passed in: due `idle` seconds after the last call, at most `longest`
    after the first."""

    def __init__(self, idle: float = IDLE_SECONDS, longest: float = LONGEST_SECONDS) -> None:
        self._idle, self._longest = idle, longest
        self._first: float | None = None
        self._last = 0.0

    def fire(self, now: float) -> None:
        self._first = now if self._first is None else self._first
        self._last = now

    def due(self) -> float | None:
        """When the round is due; None when nobody called."""
        return None if self._first is None else min(self._last + self._idle, self._first + self._longest)

    def clear(self) -> None:
        self._first = None


class Trigger:
    """`fire` from any thread; `wait` in the planner's."""

    def __init__(
        self, debounce: Debounce | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._debounce, self._monotonic = debounce or Debounce(), monotonic
        self._condition = threading.Condition()
        self._stopped = False

    def fire(self) -> None:
        with self._condition:
            self._debounce.fire(self._monotonic())
            self._condition.notify()

    def stop(self) -> None:
        """Every wait ends at once."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def wait(self, until: float) -> bool:
        """Wait for a round to be due, or for `until` on the monotonic clock. False when it was neither:
        stopped."""
        with self._condition:
            while not self._stopped:
                due = self._debounce.due()
                target = until if due is None else min(until, due)
                remaining = target - self._monotonic()
                if remaining <= 0:
                    self._debounce.clear()
                    return True
                self._condition.wait(remaining)
            return False
