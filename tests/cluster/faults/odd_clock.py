"""`python -m tests.cluster.faults.odd_clock`: the operator on a machine whose wall clock is set while it
runs.

A file says how many seconds the clock is ahead, and is read whenever somebody asks for the time. The
monotonic clock goes on, as it does on such a machine. Patched are `time.time` and the word `datetime` in the
operator's own modules; libfaketime would reach the interpreter too, but few machines have it.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from pathlib import Path

AHEAD_ENV = "PLIMSOLL_TEST_CLOCK_AHEAD"
_really, _AHEAD = time.time, Path(os.environ.get(AHEAD_ENV, os.devnull))


def set_clock(file: Path, seconds: int) -> None:
    """Whoever reads the file sees the old number or the new one."""
    fresh = file.with_suffix(".new")
    fresh.write_text(str(seconds))
    fresh.replace(file)


def ahead() -> float:
    return float(_AHEAD.read_text() or 0)


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, dt.datetime)


class Odd(dt.datetime, metaclass=_Kind):
    """A datetime whose `now` is this machine's."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
        return dt.datetime.fromtimestamp(time.time(), tz)


def main() -> None:
    time.time = lambda: _really() + ahead()
    from plimsoll import __main__ as operator

    for name, module in list(sys.modules.items()):
        if name.startswith("plimsoll.") and getattr(module, "datetime", None) is dt.datetime:
            module.datetime = Odd  # type: ignore[attr-defined]
    operator.main()


if __name__ == "__main__":
    main()
