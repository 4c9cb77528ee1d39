"""The two HTTP applications: the OpenAI API on the serving port, the report on the admin port.

They are apart because the Service exposes the one and never the other.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from plimsoll_worker.launch import ENGINE_VERSION
from plimsoll_worker.server import answers
from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.generation import Generation
from plimsoll_worker.server.intake import Intake, body_of
from plimsoll_worker.server.messages import Subject
from plimsoll_worker.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
    TokenizeRequest,
)
from plimsoll_worker.server.service import Lobby, Service


def serving_app(lobby: Lobby) -> ASGIApp:
    """The OpenAI API, /health, /metrics and /version."""
    app = _bare_app()
    app.include_router(_probes(lobby))
    app.include_router(_api(lobby), dependencies=[Depends(_authorization(lobby.api_key))])
    return Intake(app, leaves=lambda: lobby.leaves)


def admin_app(lobby: Lobby) -> ASGIApp:
    """/report."""
    app = _bare_app()

    @app.get("/report")
    async def report() -> Response:
        told = await lobby.engine.ask(Subject.REPORT)
        if told is None:
            raise await lobby.starting()
        return Response(told, media_type="application/json")

    return Intake(app)


def _bare_app() -> FastAPI:
    app = FastAPI(
        title="Plimsoll worker", version=ENGINE_VERSION, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    return app


def _probes(lobby: Lobby) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": lobby.state}, status_code=200 if lobby.answers else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        if lobby.opened is None:
            raise await lobby.starting()
        stats = await lobby.engine.ask(Subject.STATS)
        return Response(lobby.opened.metrics.exposition(stats), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version")
    async def version() -> dict[str, str]:
        return {"version": ENGINE_VERSION}

    return router


def _card(service: Service) -> dict[str, object]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.opened_at,
        "owned_by": "plimsoll",
        "max_model_len": service.opened.limits.context,
    }


def _api(lobby: Lobby) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [_card(await lobby.service())]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, object]:
        service = await lobby.service()
        service.check_model(name)
        return _card(service)

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: Annotated[ChatRequest, Depends(body_of(ChatRequest))]) -> Response:
        service = await lobby.service()
        service.check_model(body.model)
        generation = await service.generate_chat(body)
        return await _answer(request, body, answers.Answer(answers.CHAT, body.model, generation), generation)

    @router.post("/v1/completions")
    async def completions(
        request: Request, body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))]
    ) -> Response:
        service = await lobby.service()
        service.check_model(body.model)
        generation = await service.generate_completion(body)
        answer = answers.Answer(answers.COMPLETION, body.model, generation, echo=body.echo)
        return await _answer(request, body, answer, generation)

    @router.post("/tokenize")
    async def tokenize(
        body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))],
    ) -> dict[str, object]:
        service = await lobby.service()
        if body.model is not None:
            service.check_model(body.model)
        if body.prompt is not None:
            tokens = await service.prompts.tokenize(body.prompt, add_special_tokens=body.add_special_tokens)
        else:
            tokens = await service.prompts.chat(body.messages or [])
        return {"count": len(tokens), "max_model_len": service.opened.limits.context, "tokens": tokens}

    return router


async def _answer(
    request: Request, body: GenerationRequest, answer: answers.Answer, generation: Generation
) -> Response:
    if body.stream:
        events = answer.streamed(body.stream_options or StreamOptions())
        return _EventStream(events, generation)
    try:
        whole = asyncio.ensure_future(answer.whole())
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            return Response(status_code=499)  # nobody reads it; nginx's number for a client that went away
        return JSONResponse(whole.result())
    finally:
        generation.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Closes its generation however it ends: also when the client leaves before the first event is asked
    for."""

    def __init__(self, events: answers.Events, generation: Generation) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
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


async def _internal_error(_: Request, error: Exception) -> Response:
    """The log has the traceback; what it says is none of the client's business."""
    message = f"the server failed ({type(error).__name__}); its log says where"
    return ApiError(500, message, kind="internal_server_error").response()
