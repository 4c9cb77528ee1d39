"""Before weights are loaded: the stages meet, and each measures its way to the next.

A pipeline over a slow link works, and nobody knows why it is slow; so the figure stands in the log and in the
report.
"""

from __future__ import annotations

import time

from plimsoll_worker.errors import PeerLost
from plimsoll_worker.launch import Launch, LinkReport
from plimsoll_worker.parallel.line import Line, LineLost
from plimsoll_worker.parallel.rendezvous import Lines, meet
from plimsoll_worker.progress import say

PINGS = 5
LOAD_BYTES = 16 << 20
"""Long enough that TCP has opened its window, and 1.3 s at 100 Mbit/s."""
ANSWER_SECONDS = 60.0


def preflight(launch: Launch) -> tuple[Lines, LinkReport | None]:
    """Connections to the other stages, and how good the one to the next is (None: there is none). Raises
    RendezvousFailed, PeerLost, LaunchError."""
    lines = meet(launch)
    try:
        if lines.before:
            _answer(lines.before)
        link = _measure(lines.after) if lines.after else None
    except (OSError, LineLost) as error:
        raise PeerLost(f"a neighbour of stage {launch.stage} ended in the preflight ({error})") from error
    if link:
        say(
            "Link",
            to_stage=link.stage,
            mib_per_second=link.bytes_per_second >> 20,
            round_trip_microseconds=link.round_trip_microseconds,
        )
    return lines, link


def _measure(line: Line) -> LinkReport:
    """The shortest of a few round trips, and the rate of one large message."""
    trips = [_seconds(line, b"") for _ in range(PINGS)]
    took = _seconds(line, bytes(LOAD_BYTES)) - min(trips)
    return LinkReport(
        stage=line.peer,
        bytes_per_second=round(LOAD_BYTES / max(took, 1e-6)),
        round_trip_microseconds=round(1e6 * min(trips)),
    )


def _seconds(line: Line, message: bytes) -> float:
    began = time.perf_counter()
    line.put(message)
    line.next(within=ANSWER_SECONDS)
    return time.perf_counter() - began


def _answer(line: Line) -> None:
    """The far end of `_measure`."""
    for _ in range(PINGS + 1):
        line.next(within=ANSWER_SECONDS)
        line.put(b"")
