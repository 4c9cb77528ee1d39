"""The stages of a replica meet before any of them reads a weight.

    stage 0 ◄── orders ── stage 1, 2, 3        who is not the first calls the first
    stage 0 ── hidden ──► 1 ── hidden ──► 2    each calls the next

A name may not resolve yet and a pod may not listen yet: both are tried again until the deadline. A visitor of
another plan is sent away and told why, and the right one is still waited for. Everything that could differ
between two pods of one replica is found here, where it costs seconds, and not after the weights are loaded.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from plimsoll_worker.errors import PeerLost, RendezvousFailed
from plimsoll_worker.launch import Launch, LaunchError, Rendezvous
from plimsoll_worker.parallel import hello
from plimsoll_worker.parallel.hello import Hello, Purpose, Welcome
from plimsoll_worker.parallel.line import Line, LineLost, keep_alive, receive, send
from plimsoll_worker.progress import say

GREETING_SECONDS = 5.0
"""For two messages of a few hundred bytes."""
AGAIN_SECONDS = 0.5

HERE, BEGIN = b"here", b"begin"
Expected = tuple[int, Purpose]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """What connects one stage with the others."""

    orders: dict[int, Line] = field(default_factory=dict)
    """By stage: of the first one to all others, of each other one to the first."""
    before: Line | None = None
    """Where hidden states come from; None on the first stage."""
    after: Line | None = None
    """Where they go; None on the last."""

    def all(self) -> list[Line]:
        return [*self.orders.values(), *(line for line in (self.before, self.after) if line)]

    def close(self) -> None:
        """Send what waits, then hang up."""
        for line in self.all():
            line.close()


def meet(launch: Launch, *, clock: Callable[[], float] = time.monotonic) -> Lines:
    """Connections to the others, once all stages have theirs.

    Raises RendezvousFailed for who does not come or runs another plan, PeerLost for who came and went,
    LaunchError for a port that is taken.
    """
    meeting = launch.rendezvous
    assert meeting is not None, "a stage that is alone meets nobody"
    deadline = clock() + meeting.seconds
    stage, last = launch.stage, launch.pipeline_parallel - 1
    if stage == 0:
        awaited = {(other, Purpose.ORDERS) for other in range(1, last + 1)}
    else:
        awaited = {(stage - 1, Purpose.HIDDEN)}
    with _Reception(launch, awaited) as reception:
        caller = _Caller(launch, meeting, reception, deadline, clock)
        orders = {} if stage == 0 else {0: caller.call(0, Purpose.ORDERS)}
        after = None if stage == last else caller.call(stage + 1, Purpose.HIDDEN)
        came = reception.wait(deadline - clock(), meeting)
    orders |= {other: line for (other, purpose), line in came.items() if purpose is Purpose.ORDERS}
    lines = Lines(orders=orders, before=came.get((stage - 1, Purpose.HIDDEN)), after=after)
    _agree(lines, leads=stage == 0, until=deadline, clock=clock)
    say("Met", stage=stage, stages=last + 1)
    return lines


def _agree(lines: Lines, *, leads: bool, until: float, clock: Callable[[], float]) -> None:
    """The first stage hears from all that they have met their neighbours, and says so to all."""
    for stage, line in lines.orders.items():
        if not leads:
            line.put(HERE)
        try:
            line.next(within=max(GREETING_SECONDS, until - clock()))
        except TimeoutError as error:
            raise RendezvousFailed(f"stage {stage} came, but not all stages did in time") from error
        except (OSError, LineLost) as error:
            raise PeerLost(f"stage {stage} ended while the stages met ({error}); its pod says why") from error
    if leads:
        for line in lines.orders.values():
            line.put(BEGIN)


class _Caller:
    """Calls other stages, again and again until the deadline."""

    def __init__(
        self,
        launch: Launch,
        meeting: Rendezvous,
        reception: _Reception,
        deadline: float,
        clock: Callable[[], float],
    ) -> None:
        self._launch, self._meeting, self._reception = launch, meeting, reception
        self._deadline, self._clock = deadline, clock
        self._pause = threading.Event()

    def call(self, stage: int, purpose: Purpose) -> Line:
        """Raises RendezvousFailed."""
        address = self._meeting.stages[stage]
        where = f"{address.host}:{address.port}"
        while True:
            try:
                connection = socket.create_connection((address.host, address.port), timeout=GREETING_SECONDS)
                objection = self._greet(connection, purpose)
            except (OSError, LineLost, ValidationError) as error:
                if self._clock() >= self._deadline:
                    raise RendezvousFailed(
                        f"stage {stage} was not reached at {where} within {self._meeting.seconds} s: "
                        f"{_told(error)}; is its pod running, and may pods of this namespace reach port "
                        f"{address.port} of each other?{self._reception.refused}"
                    ) from error
                self._pause.wait(AGAIN_SECONDS)
                continue
            if objection:
                connection.close()
                raise RendezvousFailed(f"stage {stage} at {where} does not take this one in: {objection}")
            keep_alive(connection)
            connection.settimeout(None)
            return Line(connection, stage)

    def _greet(self, connection: socket.socket, purpose: Purpose) -> str:
        """Why we are not wanted; empty when we are."""
        try:
            send(connection, Hello.of(self._launch, purpose).to_json().encode())
            return Welcome.model_validate_json(bytes(receive(connection, hello.LONGEST))).objection
        except BaseException:
            connection.close()
            raise


class _Reception:
    """Listens while the stages meet; afterwards nobody else may come in."""

    def __init__(self, launch: Launch, awaited: Iterable[Expected]) -> None:
        self._launch, self._awaited = launch, frozenset(awaited)
        self._came: dict[Expected, Line] = {}
        self._objections: list[str] = []
        self._changed = threading.Condition()
        assert launch.rendezvous is not None
        self._listening = _bound(launch.rendezvous.stages[launch.stage].port)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._receive, name="reception", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for visitors
        self._thread.join()
        self._listening.close()
        if error is not None:
            for line in self._came.values():
                line.close()

    def wait(self, seconds: float, meeting: Rendezvous) -> dict[Expected, Line]:
        """All who are awaited. Raises RendezvousFailed that names who did not come."""
        with self._changed:
            if self._changed.wait_for(lambda: self._came.keys() == self._awaited, timeout=seconds):
                return dict(self._came)
            missing = sorted(stage for stage, _ in self._awaited - self._came.keys())
            who = f"stage {missing[0]}" if len(missing) == 1 else f"stages {', '.join(map(str, missing))}"
            raise RendezvousFailed(f"{who} did not come within {meeting.seconds} s{self.refused}")

    @property
    def refused(self) -> str:
        """The end of a sentence: why somebody who came was not taken in; empty when nobody was."""
        return f"; refused was one because the {self._objections[-1]}" if self._objections else ""

    def _receive(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # no longer listening
                return
            threading.Thread(target=self._greet, args=(connection,), name="visitor", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(GREETING_SECONDS)
            visitor = Hello.model_validate_json(bytes(receive(connection, hello.LONGEST)))
            objection = visitor.objection(self._launch)
            expected = visitor.stage, visitor.purpose
            if not objection and expected not in self._awaited:
                objection = (
                    f"stage {self._launch.stage} awaits no {visitor.purpose} from stage {visitor.stage}"
                )
            send(connection, Welcome(objection=objection).to_json().encode())
        except (OSError, LineLost, ValidationError):  # whoever it was, it was none of ours
            connection.close()
            return
        if objection:
            connection.close()
            say("Refused", stage=visitor.stage, because=objection)
            with self._changed:
                self._objections.append(objection)
            return
        keep_alive(connection)
        connection.settimeout(None)
        with self._changed:
            before = self._came.pop(expected, None)
            self._came[expected] = Line(connection, visitor.stage)
            self._changed.notify_all()
        if before is not None:  # it called again because our answer came too late
            before.close()


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("0.0.0.0", port))  # noqa: S104 - a pod is reached by its own address
    except OSError as error:
        bound.close()
        raise LaunchError(f"rendezvous.stages: port {port} cannot be bound ({error.strerror})") from error
    bound.listen()
    return bound


def _told(error: Exception) -> str:
    match error:
        case socket.gaierror():
            return "its name does not resolve"
        case TimeoutError():
            return "no answer"
        case OSError(strerror=str(words)):
            return words[0].lower() + words[1:]
        case _:
            return str(error)
