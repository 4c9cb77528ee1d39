"""One request on its way through the engine, seen from the server: ids become text, stop strings end it.

A request is one sequence, or several: n answers, or several prompts. Their tokens come through one queue, so
that one client hears of all in the order in which they were made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from plimsoll_worker.engine.sequence import FinishReason, TokenLogprobs
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.detokenizer import Detokenizer, StopStrings
from plimsoll_worker.server.engine_link import EngineLink
from plimsoll_worker.server.errors import ApiError, bad_request, unavailable
from plimsoll_worker.server.messages import Token
from plimsoll_worker.server.metrics import Metrics
from plimsoll_worker.server.prompts import Ask
from plimsoll_worker.server.tool_calls import CallPiece, CallReader
from plimsoll_worker.server.tool_families import Calling


@dataclass(frozen=True, slots=True)
class ToldToken:
    """A token of an answer with its log probability, and the likeliest ones with theirs."""

    token: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class Delta:
    """News of an answer: text, the end, or both."""

    index: int
    text: str
    finish_reason: str | None = None
    told: tuple[ToldToken, ...] = ()
    """Where log probabilities were asked for: also while the token's text is still held back."""
    calls: tuple[CallPiece, ...] = ()
    """Of functions, where there are tools."""

    def followed_by(self, other: Delta) -> Delta:
        """Both in one."""
        return Delta(
            self.index,
            self.text + other.text,
            other.finish_reason,
            self.told + other.told,
            self.calls + other.calls,
        )


CALLED = "tool_calls"
"""The finish reason of an answer that calls functions."""


class Choice:
    """One answer in the making."""

    def __init__(
        self, index: int, ask: Ask, tokenizer: Tokenizer, stop: Sequence[str], calling: Calling | None
    ) -> None:
        self.index = index
        self.ask = ask
        self.tokens = 0
        self.cached_tokens = 0
        """Of the prompt, found in the prefix cache."""
        self.ended = False
        self.times = Times()
        self._detokenizer = Detokenizer(tokenizer, ask.prompt, calling.spelled(tokenizer) if calling else {})
        self._stop = StopStrings(stop)
        self._reader = CallReader(calling.family) if calling else None

    def hear(self, news: Token) -> Delta:
        """The news that a token is; `ended` tells whether it is the last."""
        assert news.token is not None
        self.tokens += 1
        # The token that ends a text is not part of it.
        stopped = news.finish is FinishReason.STOP
        text = "" if stopped else self._detokenizer.push(news.token)
        told = () if stopped or news.logprobs is None else (ToldToken(news.token, news.logprobs),)
        if news.finish is not None:
            text += self._detokenizer.flush()
        if self.tokens > self.ask.params.min_tokens:
            text = self._stop.push(text)
        if self._stop.found:
            return self._delta(text, FinishReason.STOP, told)
        if news.finish is not None:
            return self._delta(text + self._stop.flush(), news.finish, told)
        return self._delta(text, None, told)

    def _delta(self, text: str, reason: FinishReason | None, told: tuple[ToldToken, ...]) -> Delta:
        self.ended = reason is not None
        finish = None if reason is None else reason.value
        if self._reader is None:
            return Delta(self.index, text, finish, told)
        text, calls = self._reader.push(text)
        if reason is not None:
            text += self._reader.flush()
        if reason is FinishReason.STOP and self._reader.calls:
            finish = CALLED
        return Delta(self.index, text, finish, told, tuple(calls))


class Generation:
    """The answers to one request. Always `close` it: a request whose client is gone must not hold blocks."""

    def __init__(
        self,
        engine: EngineLink,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        asks: Sequence[Ask],
        most: int,
        stop: Sequence[str],
        priority: int,
        cache_salt: str,
        calling: Calling | None = None,
    ) -> None:
        """Submit the request. `calling`: how the answers call functions. Raises ApiError; then nothing of it
        runs."""
        self.tokenizer = tokenizer
        self.choices = [Choice(index, ask, tokenizer, stop, calling) for index, ask in enumerate(asks)]
        self._engine = engine
        self._metrics = metrics
        self._tokens: list[tuple[Choice, Token]] = []
        """Told by the engine, and not yet to the client."""
        self._told = asyncio.Event()
        self._ids: list[str] = []
        try:
            for choice in self.choices:
                hear = self._hearer(choice)
                self._ids.append(
                    engine.submit(choice.ask, most=most, priority=priority, cache_salt=cache_salt, hear=hear)
                )
        except ApiError:
            self.close()
            raise

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many answers it has."""
        return sum(len(choice.ask.prompt) for choice in self.choices if choice.ask.first_of_prompt)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that the prefix cache had."""
        return sum(choice.cached_tokens for choice in self.choices if choice.ask.first_of_prompt)

    async def deltas(self) -> AsyncIterator[Delta]:
        """Pieces of text as they come, each answer's last with its finish reason. What has come while the
        client was not listening is told at once: a server that is behind catches up. Raises ApiError when the
        engine gives up."""
        while not all(choice.ended for choice in self.choices):
            await self._told.wait()
            self._told.clear()
            tokens, self._tokens = self._tokens, []
            news: dict[int, Delta] = {}
            for choice, token in tokens:
                self._add(news, choice, token)
            for delta in news.values():
                yield delta

    def close(self) -> None:
        """Let the engine forget what has not ended."""
        for choice, name in zip(self.choices, self._ids, strict=False):
            if not choice.ended:
                choice.ended = True
                self._engine.abort(name)

    def _add(self, news: dict[int, Delta], choice: Choice, token: Token) -> None:
        if choice.ended:  # by a stop string, while more tokens were on their way
            return
        if token.token is None:
            choice.ended = True
            if token.finish is FinishReason.DEAD_END:
                raise bad_request(
                    "the answer cannot go on: its schema lets no token come next, or too many; "
                    "ask for a simpler one, with fewer optional properties",
                    code="grammar_dead_end",
                )
            raise unavailable(
                "the worker stopped before the answer was complete; send the request again", "aborted"
            )
        delta, before = self._delta(choice, token), news.get(choice.index)
        news[choice.index] = delta if before is None else before.followed_by(delta)

    def _hearer(self, choice: Choice) -> Callable[[Token], None]:
        def hear(token: Token) -> None:
            self._tokens.append((choice, token))
            self._told.set()

        return hear

    def _delta(self, choice: Choice, token: Token) -> Delta:
        choice.cached_tokens = token.cached_tokens
        choice.times.token(self._metrics, token.queued_seconds)
        delta = choice.hear(token)
        if delta.finish_reason is not None:
            if token.finish is None:  # a stop string, which the engine knows nothing of
                self._engine.abort(self._ids[choice.index])
            choice.times.end(self._metrics, prompt=len(choice.ask.prompt), answer=choice.tokens)
            self._metrics.ended(delta.finish_reason)
        return delta


class Times:
    """When a sequence was asked for and its tokens came, for the metrics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._first = self._last = clock()
        self._queued: float | None = None

    def token(self, metrics: Metrics, queued: float) -> None:
        """A token came of a sequence that waited `queued` seconds for its first step."""
        now = self._clock()
        if self._queued is None:
            self._queued, self._first = queued, now
            metrics.first_token.observe(now - self._began)
            metrics.queued.observe(queued)
            metrics.prefill.observe(max(0.0, now - self._began - queued))
        else:
            metrics.between_tokens.observe(now - self._last)
        self._last = now
        metrics.tokens += 1

    def end(self, metrics: Metrics, *, prompt: int, answer: int) -> None:
        """So many tokens were asked, so many answered."""
        decode = self._last - self._first
        metrics.prompt_tokens.inc(prompt)
        metrics.prompt_length.observe(prompt)
        metrics.answer_length.observe(answer)
        metrics.request.observe(self._last - self._began)
        metrics.decode.observe(decode)
        if answer > 1:
            metrics.per_token.observe(decode / (answer - 1))
