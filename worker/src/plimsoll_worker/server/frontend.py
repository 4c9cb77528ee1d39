"""The server's process, as the engine's knows it: started in the first second, told what there is to know,
ended last.

The engine's process is the parent, because the pod is the engine: its exit code, its signals, its device. A
server that ends by itself ends the pod with a reason; a server whose parent is gone ends by itself.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from plimsoll_worker.engine.engine import Engine, EngineClosed, QueueFull
from plimsoll_worker.engine.sequence import FinishReason, Sequence, TokenEvent
from plimsoll_worker.launch import Launch, LaunchError, Report
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.progress import Startup
from plimsoll_worker.server.channel import Channel
from plimsoll_worker.server.messages import (
    Abort,
    Closing,
    Draining,
    Language,
    Leaving,
    Opened,
    Question,
    Reply,
    Standing,
    Start,
    Step,
    Subject,
    Token,
)
from plimsoll_worker.settings import ADMIN_PORT_ENV, SERVING_PORT_ENV, Settings

FAREWELL_SECONDS = 10
"""The server itself takes at most 5 for its last bytes."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the server asks of a worker that is ready."""

    engine: Engine
    opened: Opened
    report: Callable[[], Report]
    """Measured anew at every call."""


class Frontend:
    """The server's process, as a context."""

    def __init__(
        self, launch: Launch, settings: Settings, startup: Startup, died: Callable[[str], None]
    ) -> None:
        """Bind both ports. `died` is called, in a thread, when the server ends by itself. Raises LaunchError
        naming the variable of a port that is taken."""
        self.service: Service | None = None
        self._report: Callable[[], Report] | None = None
        self._name = launch.served_name
        self._startup = startup
        self._died = died
        self._sockets = [
            _bind(settings.serving_port, SERVING_PORT_ENV),
            _bind(settings.admin_port, ADMIN_PORT_ENV),
        ]
        self._closing = False

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno(), *(bound.fileno() for bound in self._sockets)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "plimsoll_worker.server", self._name, *map(str, passed)],
            pass_fds=passed,
            start_new_session=True,  # what a terminal tells this process is not meant for the server
        )
        theirs.close()
        self._channel = Channel(ours, self._hear, self._lost)
        self._channel.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._channel.put(Closing())
        try:
            self._process.wait(FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def ports(self) -> tuple[int, int]:
        """Serving and admin port, as bound."""
        serving, admin = (bound.getsockname()[1] for bound in self._sockets)
        return serving, admin

    def speak(self, tokenizer: Tokenizer) -> None:
        """Tell the model's language, while its weights are still to be loaded."""
        template = tokenizer.chat_template
        self._channel.put(
            Language(
                tokenizer=tokenizer.backend.to_str(),
                special_tokens=dict(tokenizer.special_tokens),
                chat_template=template.source if template else None,
            )
        )

    def open(self, service: Service) -> None:
        """Take requests."""
        self.service, self._report = service, service.report
        self._channel.put(service.opened)

    def stand(self, report: Callable[[], Report]) -> None:
        """Be ready, and take no requests: the first stage does."""
        self._report = report
        self._channel.put(Standing())

    def stepped(self, tokens: int) -> None:
        """Tell of a step."""
        self._channel.put(Step(tokens))

    def leave(self) -> None:
        """Go on answering, and ask clients to connect anew. Safe to call from a signal handler."""
        self._channel.put(Leaving())

    def drain(self) -> None:
        """Refuse new requests and report not ready. Safe to call from a signal handler."""
        self._channel.put(Draining())

    def _hear(self, messages: list[object]) -> None:
        for message in messages:
            match message:
                case Start():
                    self._start(message)
                case Abort(name):
                    assert self.service is not None
                    self.service.engine.abort(name)
                case Question(number, subject):
                    self._channel.put(Reply(number, self._answer(subject)))

    def _start(self, start: Start) -> None:
        assert self.service is not None, "requests come once the service is open"

        def emit(event: TokenEvent) -> None:
            cached, queued = sequence.cached_tokens or 0, sequence.queued_seconds or 0.0
            token = Token(start.id, event.token, event.finish, event.logprobs, cached, queued)
            self._channel.put(tuple(token))

        sequence = Sequence(
            id=start.id,
            prompt=start.prompt,
            params=start.params,
            emit=emit,
            priority=start.priority,
            cache_salt=start.cache_salt,
        )
        try:
            self.service.engine.submit(sequence)
        except (EngineClosed, QueueFull):  # told to drain while the request was on its way
            emit(TokenEvent(None, FinishReason.ABORTED))

    def _answer(self, subject: Subject) -> object:
        if subject is Subject.PROGRESS:
            return self._startup.doing
        if subject is Subject.REPORT:
            return self._report().to_json() if self._report else None
        return self.service.engine.stats() if self.service else None

    def _lost(self) -> None:
        if not self._closing:
            try:
                code = self._process.wait(FAREWELL_SECONDS)
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            except subprocess.TimeoutExpired:
                how = "says what nobody here understands"
            self._died(f"the HTTP server's process {how}; what it said last is in the log")


def _bind(port: int, variable: str) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("0.0.0.0", port))  # noqa: S104 - a pod is reached by its own address
    except OSError as error:
        raise LaunchError(
            f"port {port} cannot be bound ({error.strerror}); set {variable} to a free one"
        ) from error
    bound.listen(2048)
    return bound
