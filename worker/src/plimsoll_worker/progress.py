"""What the worker says while it starts and serves: one line an event on stderr, `key=value`, for people and
for grep.

A logging framework was the alternative; a worker has one stream and a dozen events, and its numbers go to
/metrics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psutil

from plimsoll_worker.launch import StartupStage, StartupTime


def say(event: str, **fields: object) -> None:
    """Print one line: time, event, fields. Values with blanks are quoted."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pairs = (f"{name}={_quoted(value)}" for name, value in fields.items())
    print(" ".join([f"time={stamp}", f"event={event}", *pairs]), file=sys.stderr, flush=True)


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(character in text for character in ' "=\n'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


class Startup:
    """Times the stages of a start, from the moment the process was created."""

    def __init__(self, *, clock: Callable[[], float] = time.time, began: float | None = None) -> None:
        self._clock = clock
        self._began = psutil.Process().create_time() if began is None else began
        self._times: list[StartupTime] = []
        self._loaded: tuple[int, int] | None = None

    def reached(self, stage: StartupStage, **fields: object) -> None:
        """Note that `stage` is done, and say so."""
        milliseconds = max(0, round((self._clock() - self._began) * 1000))
        size = self._loaded[0] if self._loaded and stage is StartupStage.WEIGHTS_LOADED else None
        self._times.append(StartupTime(stage=stage, milliseconds=milliseconds, bytes=size))
        say(stage.value, milliseconds=milliseconds, **fields)

    def loaded(self, done: int, total: int) -> None:
        """Note that so many bytes of weights lie on the device; say so at every tenth."""
        before = 0 if self._loaded is None else 10 * self._loaded[0] // total
        self._loaded = (done, total)
        if (tenth := 10 * done // total) > before:
            say("Loading", percent=10 * tenth, bytes=done, total=total)

    @property
    def doing(self) -> str:
        """What a start that is not over is busy with, in a few words."""
        if self._loaded is None:
            return "the model is still loading"
        done, total = self._loaded
        return f"the model is still loading: {done} of {total} bytes of weights"

    @property
    def times(self) -> tuple[StartupTime, ...]:
        return tuple(self._times)
