"""One request on its way through the engine, seen from the server: ids become text, stop strings end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.sequence import FinishReason, SamplingParams, Sequence, TokenEvent
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.detokenizer import Detokenizer, StopStrings
from plimsoll_worker.server.errors import unavailable
from plimsoll_worker.server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Delta:
    """News of an answer: text, the end, or both."""

    text: str
    finish_reason: str | None = None


class Generation:
    """An answer in the making. Always `close` it: a request whose client is gone must not hold blocks."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        prompt: list[int],
        params: SamplingParams,
        stop: list[str],
    ) -> None:
        """Submit the request. Raises QueueFull, EngineClosed."""
        self.prompt_tokens = len(prompt)
        self.completion_tokens = 0
        self._engine = engine
        self._metrics = metrics
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stop = StopStrings(stop)
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._ended = False
        self._began = self._last = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._sequence = Sequence(
            id=uuid4().hex,
            prompt=tuple(prompt),
            params=params,
            emit=self._receive,
        )
        engine.submit(self._sequence)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the prefix cache had."""
        return self._sequence.cached_tokens or 0

    async def deltas(self) -> AsyncIterator[Delta]:
        """Pieces of text as they come, the last with its finish reason. Raises ApiError when the engine
        gives up."""
        while not self._ended:
            event = await self._events.get()
            if event.finish in (FinishReason.ABORTED, FinishReason.FAILED):
                self._ended = True
                raise unavailable(
                    "the worker stopped before the answer was complete; send the request again", "aborted"
                )
            yield self._delta(event)

    def close(self) -> None:
        """Let the engine forget the request if it has not ended."""
        if not self._ended:
            self._ended = True
            self._engine.abort(self._sequence.id)

    def _receive(self, event: TokenEvent) -> None:
        """Called from the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _delta(self, event: TokenEvent) -> Delta:
        assert event.token is not None
        self._count_token()
        # The token that ends a text is not part of it.
        text = "" if event.finish is FinishReason.STOP else self._detokenizer.push(event.token)
        if event.finish is not None:
            text += self._detokenizer.flush()
        text = self._stop.push(text)
        if self._stop.found:
            self.close()
            return self._last_delta(text, FinishReason.STOP)
        if event.finish is not None:
            self._ended = True
            return self._last_delta(text + self._stop.flush(), event.finish)
        return Delta(text)

    def _last_delta(self, text: str, reason: FinishReason) -> Delta:
        self._metrics.request.observe(self._last - self._began)
        self._metrics.ended(reason.value)
        return Delta(text, reason.value)

    def _count_token(self) -> None:
        now = time.monotonic()
        if self.completion_tokens == 0:
            self._metrics.prompt_tokens.inc(self.prompt_tokens)
            self._metrics.first_token.observe(now - self._began)
        else:
            self._metrics.between_tokens.observe(now - self._last)
        self._last = now
        self.completion_tokens += 1
        self._metrics.generation_tokens.inc()
