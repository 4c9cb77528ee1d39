"""OpenAI's answers, whole and streamed, for chat and for plain completions: they differ in the names of a
few fields."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic_core import to_json

from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.generation import Delta, Generation, ToldToken
from plimsoll_worker.server.logprobs import chat_logprobs, completion_logprobs
from plimsoll_worker.server.protocol import StreamOptions
from plimsoll_worker.server.tool_calls import CallPiece

Json = dict[str, Any]
Events = AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one endpoint names things."""

    id_prefix: str
    whole: str
    chunk: str

    def choice(self, whole: Delta, logprobs: Json | None) -> Json:
        """A choice of a whole answer."""
        body: Json = {"text": whole.text}
        if self is CHAT:
            said: Json = {"content": whole.text}
            if calls := _whole_calls(whole.calls):
                said = {"content": whole.text or None, "tool_calls": calls}
            body = {"message": {"role": "assistant", **said}}
        return {"index": whole.index, **body, "logprobs": logprobs, "finish_reason": whole.finish_reason}

    def piece(self, delta: Delta, logprobs: Json | None) -> Json:
        """The choice of a chunk."""
        said: Json = {"content": delta.text} if delta.text else {}
        if delta.calls:
            said["tool_calls"] = [_call_piece(piece) for piece in delta.calls]
        body: Json = {"text": delta.text} if self is COMPLETION else {"delta": said}
        return {"index": delta.index, **body, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def opening(self, index: int, echoed: str) -> Json | None:
        """The choice of the chunk that comes before the first token, if there is one."""
        body: Json
        if self is CHAT:
            body = {"delta": {"role": "assistant", "content": ""}}
        elif echoed:
            body = {"text": echoed}
        else:
            return None
        return {"index": index, **body, "logprobs": None, "finish_reason": None}


CHAT = Shape("chatcmpl", "chat.completion", "chat.completion.chunk")
COMPLETION = Shape("cmpl", "text_completion", "text_completion")


class Answer:
    """How a generation is told to its client."""

    def __init__(self, shape: Shape, model: str, generation: Generation, *, echo: bool = False) -> None:
        """`echo`: each answer begins with its prompt."""
        self._shape = shape
        self._model = model
        self._generation = generation
        decode = generation.tokenizer.decode
        self._echoed = [decode(choice.ask.prompt) if echo else "" for choice in generation.choices]
        # Where each answer's next token begins: plain completions tell it of every token.
        self._offsets = [len(text) for text in self._echoed]

    async def whole(self) -> Json:
        """In one piece. Raises ApiError when the engine gives up."""
        wholes = [Delta(index, text) for index, text in enumerate(self._echoed)]
        async for delta in self._generation.deltas():
            wholes[delta.index] = wholes[delta.index].followed_by(delta)
        return {
            **self._head(self._shape.whole),
            "choices": [
                self._shape.choice(whole, self._logprobs(whole.index, whole.told)) for whole in wholes
            ],
            "usage": self._usage(),
        }

    async def streamed(self, options: StreamOptions) -> Events:
        """As server-sent events. An engine that gives up is one more event, since the status is out
        already."""
        head = self._head(self._shape.chunk)
        if options.include_usage:
            head["usage"] = None
        for index, echoed in enumerate(self._echoed):
            if (opening := self._shape.opening(index, echoed)) is not None:
                yield _event({**head, "choices": [opening]})
        try:
            async for delta in self._generation.deltas():
                if not (delta.text or delta.finish_reason or delta.told or delta.calls):
                    continue
                if options.continuous_usage_stats:
                    head["usage"] = self._usage()
                logprobs = self._logprobs(delta.index, delta.told)
                yield _event({**head, "choices": [self._shape.piece(delta, logprobs)]})
        except ApiError as error:
            yield _event(error.body)
            return
        if options.include_usage:
            yield _event({**head, "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _logprobs(self, index: int, told: Sequence[ToldToken]) -> Json | None:
        if self._generation.choices[index].ask.params.logprobs is None:
            return None
        tokenizer = self._generation.tokenizer
        if self._shape is CHAT:
            return chat_logprobs(tokenizer, told)
        body, self._offsets[index] = completion_logprobs(tokenizer, told, self._offsets[index])
        return body

    def _usage(self) -> Json:
        generation = self._generation
        return {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "total_tokens": generation.prompt_tokens + generation.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        }

    def _head(self, kind: str) -> Json:
        return {
            "id": f"{self._shape.id_prefix}-{uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
        }


def _event(body: Json) -> bytes:
    """pydantic's serializer takes 1 µs where json's takes 5."""
    return b"data: %b\n\n" % to_json(body)


def _call_piece(piece: CallPiece) -> Json:
    """News of a call, as a chunk tells it."""
    begins: Json = {"id": piece.id, "type": "function"} if piece.id is not None else {}
    named = {"name": piece.name} if piece.name is not None else {}
    return {"index": piece.index, **begins, "function": {**named, "arguments": piece.arguments}}


def _whole_calls(pieces: Sequence[CallPiece]) -> list[Json]:
    """Calls as a whole answer tells them."""
    calls: list[Json] = []
    for piece in pieces:
        if piece.id is not None:
            function = {"name": piece.name, "arguments": ""}
            calls.append({"id": piece.id, "type": "function", "function": function})
        calls[piece.index]["function"]["arguments"] += piece.arguments
    return calls
