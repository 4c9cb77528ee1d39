"""The engine as the server's process knows it: sequences to start and abort, tokens that come, questions."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import count
from typing import Any
from uuid import uuid4

from plimsoll_worker.engine.sequence import FinishReason
from plimsoll_worker.server.channel import Channel
from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.messages import Abort, Question, Reply, Start, Subject, Token
from plimsoll_worker.server.prompts import Ask

RETRY_AFTER_SECONDS = 5
"""A fair guess at when a request is done."""

Hear = Callable[[Token], None]


class EngineLink:
    """Lives on one event loop and is used from it alone."""

    def __init__(self, end: socket.socket, told: Callable[[object], None], lost: Callable[[], None]) -> None:
        """`told` gets what is no sequence's token and no reply; `lost` is called when the engine's process is
        gone, before every sequence hears that it failed."""
        self._loop = asyncio.get_running_loop()
        self._told = told
        self._lost = lost
        self._sequences: dict[str, Hear] = {}
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._channel = Channel(
            end,
            lambda messages: self._call(lambda: self._dispatch(messages)),
            lambda: self._call(self._end),
        )
        self._channel.start()

    def submit(self, ask: Ask, *, most: int, priority: int, cache_salt: str, hear: Hear) -> str:
        """Start a sequence, of which `hear` is told; its id. Raises ApiError 429 when `most` run and wait."""
        if len(self._sequences) >= most:
            raise ApiError(
                429,
                f"{most} requests run and wait already; try again in {RETRY_AFTER_SECONDS} s",
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        name = uuid4().hex
        self._sequences[name] = hear
        self._channel.put(
            Start(
                id=name,
                prompt=tuple(ask.prompt),
                params=ask.params,
                priority=priority,
                cache_salt=cache_salt,
            )
        )
        return name

    def abort(self, name: str) -> None:
        """It counts among those that run until the engine has said that it does not."""
        if name in self._sequences:
            self._sequences[name] = _ignore
            self._channel.put(Abort(name))

    async def ask(self, subject: Subject) -> Any:
        """What the engine's process answers."""
        number = next(self._numbers)
        reply = self._questions[number] = self._loop.create_future()
        self._channel.put(Question(number, subject))
        return await reply

    def _call(self, work: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    def _dispatch(self, messages: list[Any]) -> None:
        try:
            for message in messages:
                self._understand(message)
        except Exception:
            self._end()  # a server that has missed a word is worth less than a new one
            raise

    def _understand(self, message: object) -> None:
        if isinstance(message, tuple):
            self._hear(Token(*message))
            return
        match message:
            case Reply(number, answer):
                reply = self._questions.pop(number)
                if not reply.done():  # the client that asked may be gone
                    reply.set_result(answer)
            case _:
                self._told(message)

    def _hear(self, token: Token) -> None:
        hear = self._sequences[token.id]
        if token.finish is not None:
            del self._sequences[token.id]
        hear(token)

    def _end(self) -> None:
        self._lost()
        for name in list(self._sequences):
            self._hear(Token(name, None, FinishReason.FAILED, None, 0, 0.0))
        for reply in self._questions.values():
            reply.cancel()


def _ignore(_: Token) -> None:
    """Nobody listens any more."""
