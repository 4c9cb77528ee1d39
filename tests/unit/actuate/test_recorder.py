"""Events are posted in the background, and whatever becomes of one, the next is posted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from plimsoll.actuate.ownership import Owner
from plimsoll.actuate.recorder import THREADS, Recorder
from plimsoll.cluster.calm import Calm
from plimsoll.cluster.kube import AlreadyExists, Kube, Unavailable
from plimsoll.cluster.observed import EmitEvent

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Server:
    """Takes events; before that, each of these errors once."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.taken: list[str] = []

    def create(self, _kind: Any, _namespace: str, body: dict[str, Any]) -> None:
        if self.errors:
            raise self.errors.pop()
        self.taken.append(body["note"])


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def recorder(server: Server) -> Iterator[Recorder]:
    found = Recorder(cast(Kube, server), "test", Calm())
    found.start()
    yield found
    found.stop()


def tell(recorder: Recorder, note: str) -> None:
    recorder.tell(Owner("models", "small", "u"), EmitEvent("Ready", note), NOW)


def test_an_event_that_the_server_cannot_take_now_is_posted_later(
    recorder: Recorder, server: Server, wait_for: Callable[..., Any]
) -> None:
    server.errors = [Unavailable("too many requests", 429)]
    tell(recorder, "it answers")
    wait_for(lambda: server.taken == ["it answers"], 10, "it is posted")


@pytest.mark.parametrize("error", [AlreadyExists("posted before"), ValueError("a fault of ours")])
def test_an_event_that_goes_wrong_keeps_no_other_from_being_posted(
    error: Exception, recorder: Recorder, server: Server, wait_for: Callable[..., Any]
) -> None:
    server.errors = [error] * THREADS
    for number in range(THREADS):
        tell(recorder, f"lost {number}")
    wait_for(lambda: not server.errors, 10, "all of them went wrong")
    tell(recorder, "it answers")
    wait_for(lambda: server.taken == ["it answers"], 10, "the next one is posted")
