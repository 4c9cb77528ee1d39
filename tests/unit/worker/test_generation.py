"""What the server makes of an engine's news: text, ends, and what is late told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll_worker.engine.sequence import FinishReason, SamplingParams
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.generation import Generation
from plimsoll_worker.server.messages import Limits, Opened, Token
from plimsoll_worker.server.metrics import Metrics
from plimsoll_worker.server.prompts import Ask


class Engine:
    """Stands for an EngineLink: keeps who listens, and takes as many sequences as it is told."""

    def __init__(self, room: int = 8) -> None:
        self.hearers: dict[str, Callable[[Token], None]] = {}
        self.aborted: list[str] = []
        self._room = room

    def submit(self, ask: Ask, *, hear: Callable[[Token], None], **_: Any) -> str:
        if len(self.hearers) == self._room:
            raise ApiError(429, "full")
        name = f"s{len(self.hearers)}"
        self.hearers[name] = hear
        return name

    def abort(self, name: str) -> None:
        self.aborted.append(name)

    def say(self, name: str, *tokens: int | None, finish: FinishReason | None = None) -> None:
        for place, token in enumerate(tokens, start=1):
            end = finish if place == len(tokens) else None
            self.hearers[name](Token(name, token, end, None, 2, 0.0))


def generation(
    engine: Engine, tokenizer: Tokenizer, *, answers: int = 1, stop: tuple[str, ...] = ()
) -> Generation:
    params = SamplingParams(max_tokens=9)
    limits = Limits(context=99, vocabulary=9, eos_token_ids=frozenset(), sequences=8)
    return Generation(
        engine,  # type: ignore[arg-type]
        tokenizer,
        Metrics("m", Opened(limits=limits, block_size=16, blocks=4)),
        asks=[Ask([5, 6, 7], params, first_of_prompt=index == 0) for index in range(answers)],
        most=8,
        stop=stop,
        priority=0,
        cache_salt="",
    )


async def test_news_that_gathered_is_told_at_once_for_each_answer(tokenizer: Tokenizer) -> None:
    engine = Engine()
    asked = generation(engine, tokenizer, answers=2)
    words = tokenizer.encode("one two three four")
    engine.say("s0", *words[:2])
    engine.say("s1", *words[2:], finish=FinishReason.LENGTH)
    engine.say("s0", words[2], finish=FinishReason.LENGTH)
    told = [(delta.index, delta.text, delta.finish_reason) async for delta in asked.deltas()]
    assert told == [(0, "one two three", "length"), (1, tokenizer.decode(words[2:]), "length")]
    assert (asked.prompt_tokens, asked.completion_tokens, asked.cached_tokens) == (3, 5, 2)
    asked.close()
    assert engine.aborted == []


async def test_a_stop_string_ends_its_answer_alone_and_late_tokens_are_dropped(tokenizer: Tokenizer) -> None:
    engine = Engine()
    asked = generation(engine, tokenizer, answers=2, stop=(" two",))
    words = tokenizer.encode("one two three four")
    engine.say("s0", *words)
    engine.say("s0", None, finish=FinishReason.ABORTED)
    engine.say("s1", words[0], finish=FinishReason.LENGTH)
    told = [(delta.index, delta.text, delta.finish_reason) async for delta in asked.deltas()]
    assert told == [(0, "one", "stop"), (1, "one", "length")]
    assert engine.aborted == ["s0"]
    assert asked.completion_tokens == 3


async def test_an_engine_that_gives_up_is_an_error_and_the_other_answers_are_aborted(
    tokenizer: Tokenizer,
) -> None:
    engine = Engine()
    asked = generation(engine, tokenizer, answers=2)
    engine.say("s1", None, finish=FinishReason.FAILED)
    with pytest.raises(ApiError, match="before the answer was complete") as caught:
        await anext(asked.deltas())
    assert caught.value.status == 503
    asked.close()
    assert engine.aborted == ["s0"]


async def test_a_request_that_does_not_fit_as_a_whole_leaves_nothing_behind(tokenizer: Tokenizer) -> None:
    engine = Engine(room=2)
    with pytest.raises(ApiError, match="full"):
        generation(engine, tokenizer, answers=3)
    assert engine.aborted == ["s0", "s1"]
