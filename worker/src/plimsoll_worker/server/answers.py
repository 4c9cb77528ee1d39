"""OpenAI's answers, whole and streamed, for chat and for plain completions: they differ in the names of a
few fields."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.generation import Delta, Generation

Json = dict[str, Any]
Events = AsyncIterator[str]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one endpoint names things."""

    id_prefix: str
    whole: str
    chunk: str

    def choice(self, text: str, finish_reason: str) -> Json:
        """The choice of a whole answer."""
        body: Json = (
            {"text": text} if self is COMPLETION else {"message": {"role": "assistant", "content": text}}
        )
        return {"index": 0, **body, "logprobs": None, "finish_reason": finish_reason}

    def piece(self, delta: Delta) -> Json:
        """The choice of a chunk."""
        text: Json = {"content": delta.text} if delta.text else {}
        body: Json = {"text": delta.text} if self is COMPLETION else {"delta": text}
        return {"index": 0, **body, "logprobs": None, "finish_reason": delta.finish_reason}


CHAT = Shape("chatcmpl", "chat.completion", "chat.completion.chunk")
COMPLETION = Shape("cmpl", "text_completion", "text_completion")


def usage(generation: Generation) -> Json:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


async def whole(shape: Shape, model: str, generation: Generation) -> Json:
    """The answer in one piece. Raises ApiError when the engine gives up."""
    text, reason = "", ""
    async for delta in generation.deltas():
        text += delta.text
        reason = delta.finish_reason or reason
    return {
        **_head(shape, shape.whole, model),
        "choices": [shape.choice(text, reason)],
        "usage": usage(generation),
    }


async def streamed(shape: Shape, model: str, generation: Generation, *, include_usage: bool) -> Events:
    """The answer as server-sent events. An engine that gives up is one more event, since the status is out
    already."""
    head = _head(shape, shape.chunk, model)
    if include_usage:
        head["usage"] = None
    if shape is CHAT:
        opening = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        yield _event({**head, "choices": [opening]})
    try:
        async for delta in generation.deltas():
            if delta.text or delta.finish_reason:
                yield _event({**head, "choices": [shape.piece(delta)]})
    except ApiError as error:
        yield _event(error.body)
        return
    if include_usage:
        yield _event({**head, "choices": [], "usage": usage(generation)})
    yield "data: [DONE]\n\n"


def _head(shape: Shape, kind: str, model: str) -> Json:
    return {
        "id": f"{shape.id_prefix}-{uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _event(body: Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
