"""The operator's time is the API server's, whatever the machine's own clock says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from plimsoll.cluster.clock import ServerClock

START = datetime(2026, 11, 23, 4, 0, 0, tzinfo=UTC)


class Machines:
    """A server's clock and the operator's two."""

    def __init__(self) -> None:
        self.server, self.wall, self.monotonic = START, START, 1000.0
        self.clock = ServerClock(wall=self._wall_seconds, monotonic=lambda: self.monotonic)

    def _wall_seconds(self) -> float:
        return self.wall.timestamp()

    def pass_time(self, seconds: float) -> None:
        self.server += timedelta(seconds=seconds)
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds

    def answer(self) -> None:
        self.clock.heard(format_datetime(self.server.replace(microsecond=0), usegmt=True))

    @property
    def error(self) -> float:
        """Seconds that the operator is ahead of the server."""
        return (self.clock.now() - self.server).total_seconds()


def test_before_the_first_answer_it_is_the_machines_own() -> None:
    machines = Machines()
    assert machines.clock.now() == START


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_machine_whose_clock_is_off_or_jumps_tells_the_servers_time(hours: int) -> None:
    machines = Machines()
    machines.wall += timedelta(hours=hours)
    machines.answer()
    assert machines.error == 0
    machines.wall += timedelta(hours=hours)
    machines.pass_time(7)
    assert machines.error == 0


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_server_whose_clock_is_set_is_followed(hours: int) -> None:
    machines = Machines()
    machines.answer()
    machines.server += timedelta(hours=hours)
    machines.answer()
    assert machines.error == 0


def test_whole_seconds_and_late_answers_do_not_make_it_go_back() -> None:
    machines = Machines()
    machines.pass_time(0.9)
    before = machines.clock.now()
    for _ in range(50):
        machines.pass_time(0.13)
        machines.answer()
        assert -1 < machines.error <= 0
        assert machines.clock.now() > before
        before = machines.clock.now()
    assert machines.error > -0.2, "the answer that came just after a full second counts"


@pytest.mark.parametrize("date", [None, "", "tomorrow", "Mon, 23 Nov 2026 25:00:00 GMT"])
def test_a_header_that_says_nothing_changes_nothing(date: str | None) -> None:
    machines = Machines()
    machines.answer()
    machines.clock.heard(date)
    assert machines.error == 0
