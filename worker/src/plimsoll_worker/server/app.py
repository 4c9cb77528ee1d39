"""The two HTTP applications: the OpenAI API on the serving port, the report on the admin port.

They are apart because the Service exposes the one and never the other.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from plimsoll_worker.launch import ENGINE_VERSION
from plimsoll_worker.server import answers
from plimsoll_worker.server.errors import ApiError, unavailable
from plimsoll_worker.server.generation import Generation
from plimsoll_worker.server.protocol import ChatRequest, CompletionRequest, GenerationRequest, TokenizeRequest
from plimsoll_worker.server.service import Lobby, State

REQUEST_ID = "X-Request-Id"


def serving_app(lobby: Lobby) -> FastAPI:
    """The OpenAI API, /health, /metrics and /version."""
    app = _bare_app()
    app.include_router(_probes(lobby))
    app.include_router(_api(lobby), dependencies=[Depends(_authorization(lobby.api_key))])
    return app


def admin_app(lobby: Lobby) -> FastAPI:
    """/report."""
    app = _bare_app()

    @app.get("/report")
    async def report() -> Response:
        if lobby.opened is None:
            raise unavailable(lobby.startup.doing, "starting")
        return Response(lobby.opened.report().to_json(), media_type="application/json")

    return app


def _bare_app() -> FastAPI:
    app = FastAPI(
        title="Plimsoll worker", version=ENGINE_VERSION, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _probes(lobby: Lobby) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": lobby.state}, status_code=200 if lobby.state is State.READY else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        if lobby.opened is None:
            raise unavailable(lobby.startup.doing, "starting")
        return Response(lobby.opened.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version")
    async def version() -> dict[str, str]:
        return {"version": ENGINE_VERSION}

    return router


def _api(lobby: Lobby) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, object]:
        service = lobby.service()
        card = {
            "id": service.launch.served_name,
            "object": "model",
            "created": service.opened_at,
            "owned_by": "plimsoll",
            "max_model_len": service.launch.max_context_tokens,
        }
        return {"object": "list", "data": [card]}

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        service = lobby.service()
        service.check_model(body.model)
        return await _answer(request, body, answers.CHAT, service.generate_chat(body))

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        service = lobby.service()
        service.check_model(body.model)
        return await _answer(request, body, answers.COMPLETION, service.generate_completion(body))

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, object]:
        service = lobby.service()
        if body.model is not None:
            service.check_model(body.model)
        if body.prompt is not None:
            tokens = service.tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens)
        else:
            tokens = service.chat_prompt(body.messages or [])
        return {"count": len(tokens), "max_model_len": service.launch.max_context_tokens, "tokens": tokens}

    return router


async def _answer(
    request: Request, body: GenerationRequest, shape: answers.Shape, generation: Generation
) -> Response:
    headers = {REQUEST_ID: request.headers.get(REQUEST_ID) or uuid4().hex}
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        events = answers.streamed(shape, body.model, generation, include_usage=include_usage)
        return _EventStream(events, generation, headers)
    try:
        answer = asyncio.ensure_future(answers.whole(shape, body.model, generation))
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not answer.done():
            answer.cancel()
            return Response(status_code=499)  # nobody reads it; nginx's number for a client that went away
        return JSONResponse(answer.result(), headers=headers)
    finally:
        generation.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Closes its generation however it ends: also when the client leaves before the first event is asked
    for."""

    def __init__(self, events: answers.Events, generation: Generation, headers: dict[str, str]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={**headers, "Cache-Control": "no-cache"}
        )
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()


def _authorization(api_key: str | None) -> Callable[[str], Awaitable[None]]:
    async def check(authorization: Annotated[str, Header()] = "") -> None:
        scheme, _, token = authorization.partition(" ")
        if api_key is None or (
            scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), api_key.encode())
        ):
            return
        raise ApiError(
            401,
            "the API key is missing or wrong; send it as Authorization: Bearer <key>",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    return check


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, str(error.detail)).response()


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(where) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this field is not known to this engine; leave it out"
    return ApiError(400, f"{param}: {message}" if param else message, param=param).response()
