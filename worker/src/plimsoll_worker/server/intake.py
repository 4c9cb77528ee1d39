"""What stands before the API and trusts nobody: how large a body may be, how long a client may take to send
it or to read the answer, and a name for every request.

uvicorn leaves these to a proxy in front of it; in a cluster there often is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import uuid4

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from plimsoll_worker.server.errors import ApiError

REQUEST_ID = "X-Request-Id"
MAX_BODY_BYTES = 8 * 2**20
"""A million tokens of text, or of ids: more than any context that fits a card."""
MAX_DISCARDED_BYTES = 8 * MAX_BODY_BYTES
"""So much is read for nothing, so that the client hears why: a connection closed before is only reset."""
HEADER_SECONDS = 15
BODY_SECONDS = 30
SEND_SECONDS = 60
"""How long one piece of an answer may wait for its reader."""

Body = TypeVar("Body", bound=BaseModel)


class Intake:
    """Around an application: request ids. While it `leaves`, every answer is the last of its connection: the
    client's next one leads to another replica."""

    def __init__(self, app: ASGIApp, *, leaves: Callable[[], bool] = lambda: False) -> None:
        self._app, self._leaves = app, leaves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = Headers(scope=scope).get(REQUEST_ID) or uuid4().hex

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = name
                if self._leaves():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            return  # uvicorn closes a connection whose answer is not complete


def body_of(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A FastAPI dependency: the request's body as `kind`. Raises ApiError 400, 408, 413."""

    async def read(request: Request) -> Body:
        raw = await _bytes(request)
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise _told(error) from error

    return read


async def _bytes(request: Request) -> bytes:
    kept, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size <= MAX_BODY_BYTES:
                    kept += piece
                elif size > MAX_DISCARDED_BYTES:
                    break
    except TimeoutError as error:
        message = f"the body did not come within {BODY_SECONDS} s"
        raise ApiError(408, message, code="request_timeout", headers={"Connection": "close"}) from error
    if size > MAX_BODY_BYTES:
        raise ApiError(
            413,
            f"the body is larger than {MAX_BODY_BYTES} bytes; shorten the prompt or send several requests",
            code="request_too_large",
            headers={"Connection": "close"},
        )
    return bytes(kept)


def _told(error: ValidationError) -> ApiError:
    """The first of what is wrong, in OpenAI's form."""
    first = error.errors(include_input=False, include_url=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this field is not known to this engine; leave it out"
    return ApiError(400, f"{param}: {message}" if param else message, param=param)


class DeadlineProtocol(H11Protocol):
    """uvicorn's protocol, which waits for ever for the headers of a request once a byte of them has come, and
    for a client to read. A deadline around every piece that is sent would be a timer a token; here it begins
    when the socket takes no more."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._in_request():
            self._set_deadline()
        super().data_received(data)
        if self._in_request():
            self._clear_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._unread = self.loop.call_later(SEND_SECONDS, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._clear_unread()
        super().resume_writing()

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _clear_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
