"""Clients that take their time, one way or the other: the deadlines, made short."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from plimsoll_worker.server import intake
from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.protocol import CompletionRequest

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}


async def never() -> Any:
    await asyncio.Event().wait()


async def test_a_body_that_comes_by_drops_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.05)
    drops = iter([{"type": "http.request", "body": b'{"model"', "more_body": True}])

    async def receive() -> Any:
        return next(drops, None) or await never()

    with pytest.raises(ApiError, match="did not come within") as caught:
        await intake.body_of(CompletionRequest)(Request(SCOPE, receive))
    assert caught.value.status == 408
    assert caught.value.headers["Connection"] == "close"


async def test_an_answer_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "SEND_SECONDS", 0.05)
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(2**20)
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(endless())(scope, receive, send)

    config = uvicorn.Config(
        intake.Intake(app), http=intake.DeadlineProtocol, lifespan="off", log_level="error"
    )
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[bound]))
        with socket.socket() as client:
            await asyncio.to_thread(client.connect, bound.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await closed.wait()
        server.should_exit = True
