"""Stages meet, or say why they do not, before anything is loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.worker.parallel.stages import stage_launches
from tests.unit.worker.processes import wait_for

from plimsoll_worker.errors import RendezvousFailed
from plimsoll_worker.launch import Launch, LaunchError
from plimsoll_worker.parallel import line as lines_module
from plimsoll_worker.parallel.hello import Hello, Purpose
from plimsoll_worker.parallel.line import LineLost, receive, send
from plimsoll_worker.parallel.preflight import preflight
from plimsoll_worker.parallel.rendezvous import Lines, meet

WAIT = 30


@contextmanager
def met(launches: list[Launch]) -> Iterator[list[Lines]]:
    with ThreadPoolExecutor(len(launches)) as threads:
        found = list(threads.map(meet, launches))
    try:
        yield found
    finally:
        for lines in found:
            lines.close()


def failure(future: Future[Lines]) -> str:
    error = future.exception(timeout=WAIT)
    assert isinstance(error, RendezvousFailed)
    return str(error)


@pytest.mark.parametrize("layers", [(16, 14), (8, 8, 8, 6)], ids=len)
def test_every_stage_is_connected_to_the_first_and_to_its_neighbours(layers: tuple[int, ...]) -> None:
    with met(stage_launches(Path("m"), layers)) as found:
        first, *others = found
        assert sorted(first.orders) == list(range(1, len(layers)))
        for stage, lines in enumerate(others, start=1):
            assert list(lines.orders) == [0]
            assert lines.before is not None
            assert lines.before.peer == stage - 1
            assert (lines.after is None) == (stage == len(layers) - 1)
            first.orders[stage].put(b"step", b" of ", b"many parts")
            assert lines.orders[0].next(within=WAIT) == b"step of many parts"
            lines.orders[0].put(b"token")
            assert first.orders[stage].next(within=WAIT) == b"token"


def test_the_way_to_the_next_stage_is_measured() -> None:
    launches = stage_launches(Path("m"), (10, 10, 10))
    with ThreadPoolExecutor(len(launches)) as threads:
        found = list(threads.map(preflight, launches))
    for lines, _ in found:
        lines.close()
    [first, second, last] = [link for _, link in found]
    assert last is None
    for stage, link in ((1, first), (2, second)):
        assert link is not None
        assert link.stage == stage
        assert link.bytes_per_second > 1_000_000
        assert 0 < link.round_trip_microseconds < 1_000_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan_id": "other"}, "plan id is plan-1 of stage 0 and other of stage 1"),
        ({"revision": "smollm2-2"}, "revision is smollm2-1 of stage 0 and smollm2-2 of stage 1"),
        ({"attempt": 7}, "attempt is 0 of stage 0 and 7 of stage 1"),
        ({"replica": 1}, "replica is 0 of stage 0 and 1 of stage 1"),
    ],
    ids=["plan", "revision", "attempt", "replica"],
)
def test_who_was_told_another_plan_is_sent_away_and_both_say_why(
    changes: dict[str, object], words: str
) -> None:
    first, second = stage_launches(Path("m"), seconds=3)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(meet, first)
        stranger = threads.submit(meet, second.model_copy(update=changes))
        told = [failure(waiting), failure(stranger)]
    ends = f"does not take this one in: {words}", f"; refused was one because the {words}"
    assert all(message.endswith(ends) for message in told), told


def test_an_engine_of_another_version_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = stage_launches(Path("m"))
    older = Hello.of(second, Purpose.ORDERS).model_copy(update={"engine_version": "0.0.1"})
    assert older.objection(first).endswith(" of stage 0 and 0.0.1 of stage 1")


def test_a_stranger_costs_the_right_one_nothing() -> None:
    first, second = stage_launches(Path("m"))
    assert first.rendezvous is not None
    here = ("127.0.0.1", first.rendezvous.stages[0].port)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(meet, first)
        wait_for(lambda: _listens(here), WAIT, "stage 0 listens")
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 8, b""):
            with socket.create_connection(here) as stranger:
                stranger.sendall(words)
        with socket.create_connection(here) as stranger:
            misplaced = Hello.of(second, Purpose.HIDDEN)
            send(stranger, misplaced.to_json().encode())
            assert b"awaits no hidden from stage 1" in receive(stranger)
        second_lines = threads.submit(meet, second)
        for future in (waiting, second_lines):
            future.result(timeout=WAIT).close()


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("stage", "words"),
    [(0, "stage 1 was not reached at 127.0.0.1:"), (1, "stage 0 was not reached at 127.0.0.1:")],
)
def test_a_stage_that_never_comes_is_named(stage: int, words: str) -> None:
    with pytest.raises(RendezvousFailed, match=words):
        meet(stage_launches(Path("m"), seconds=1)[stage])


def test_who_can_be_called_and_does_not_call_is_named() -> None:
    first, second, _ = stage_launches(Path("m"), (10, 10, 10), seconds=2)
    with ThreadPoolExecutor(2) as threads:
        waiting, calling = threads.submit(meet, first), threads.submit(meet, second)
        assert "stage 2 was not reached" in failure(calling)
        assert "stage 2 did not come within 2 s" in failure(waiting)


def test_a_name_that_does_not_resolve_is_told() -> None:
    _, second = stage_launches(Path("m"), seconds=1)
    assert second.rendezvous is not None
    nowhere = second.rendezvous.stages[0].model_copy(update={"host": "r0-s0-a0.nowhere.invalid"})
    stages = (nowhere, second.rendezvous.stages[1])
    lost = second.rendezvous.model_copy(update={"stages": stages})
    with pytest.raises(RendezvousFailed, match="its name does not resolve"):
        meet(second.model_copy(update={"rendezvous": lost}))


def test_a_port_that_is_taken_is_told_by_its_number() -> None:
    first, _ = stage_launches(Path("m"))
    assert first.rendezvous is not None
    port = first.rendezvous.stages[0].port
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        with pytest.raises(LaunchError, match=f"port {port} cannot be bound"):
            meet(first)


def test_the_end_of_the_far_end_is_heard_and_what_was_sent_before_arrives() -> None:
    with met(stage_launches(Path("m"))) as (first, second):
        heard: list[bytes] = []
        lost: list[tuple[int, str]] = []
        second.orders[0].listen(lambda message: heard.append(bytes(message)), lambda *why: lost.append(why))
        large = bytes(range(256)) * 50_000
        first.orders[1].put(large)
        first.orders[1].close()
        wait_for(lambda: bool(lost), WAIT, "the end is heard")
        assert heard == [large]
        assert lost == [(0, "the connection was closed")]


def test_a_message_longer_than_any_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((1 << 40).to_bytes(8, "big"))
        with pytest.raises(LineLost, match="1099511627776 bytes"):
            receive(theirs)


def test_a_machine_that_says_nothing_is_lost_within_ten_seconds() -> None:
    with met(stage_launches(Path("m"))) as (first, _):
        connection = first.orders[1]._connection
        tcp = socket.IPPROTO_TCP
        idle, every, count = (
            connection.getsockopt(tcp, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert idle + every * count <= lines_module.SILENT_SECONDS <= 9
        assert connection.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 1000 * lines_module.SILENT_SECONDS
