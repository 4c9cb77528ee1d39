"""What the engine's process and the server's say to each other. Nothing but a `Question` waits for an answer.

server → engine    Start, Abort, Question
engine → server    Language, Opened, Token, Step, Leaving, Draining, Closing, Reply
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from plimsoll_worker.engine.sequence import FinishReason, SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Generate."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int
    cache_salt: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop generating. A sequence that has ended is no error."""

    id: str


class Subject(StrEnum):
    """What the server asks the engine's process about."""

    STATS = "stats"
    """Answered by EngineStats."""
    REPORT = "report"
    """By the report's JSON, once the service is open; before by None."""
    PROGRESS = "progress"
    """By what a start that is not over is busy with, in a few words."""


@dataclass(frozen=True, slots=True)
class Question:
    """`number` is in its Reply."""

    number: int
    subject: Subject


@dataclass(frozen=True, slots=True)
class Reply:
    """To the question of that number."""

    number: int
    answer: object


@dataclass(frozen=True, slots=True)
class Language:
    """The model's tokenizer and chat template, as soon as they are read: making a tokenizer of them takes as
    long as loading some models does."""

    tokenizer: str
    """tokenizer.json"""
    special_tokens: Mapping[str, str]
    chat_template: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a deployment of a model can take."""

    context: int
    """Tokens of prompt and answer together."""
    vocabulary: int
    eos_token_ids: frozenset[int]
    sequences: int
    """Most that run and wait at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The engine takes requests from now on."""

    limits: Limits
    block_size: int
    """Tokens of a KV block."""
    blocks: int


class Token(NamedTuple):
    """News of a sequence. It crosses as a plain tuple: tens of thousands a second do, and pickling an object
    of a class takes thirty times as long (3.9 against 0.12 microseconds), with the interpreter lock held."""

    id: str
    token: int | None
    finish: FinishReason | None
    logprobs: TokenLogprobs | None
    cached_tokens: int
    """Tokens of the prompt that the prefix cache had."""
    queued_seconds: float
    """From its submission to its first step."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step was launched."""

    tokens: int
    """Computed in it."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Answer, and send clients elsewhere."""


@dataclass(frozen=True, slots=True)
class Standing:
    """This stage of a replica works. Its first stage takes the requests."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Take nothing new."""


@dataclass(frozen=True, slots=True)
class Closing:
    """Say good-bye and end."""
