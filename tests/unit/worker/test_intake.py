"""Clients that take their time, one way or the other: the deadlines, made short."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

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
    closed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: 1", "more_body": True})
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    async with asyncio.timeout(10):
        await intake.Intake(app)(SCOPE, never, send)
    assert closed
