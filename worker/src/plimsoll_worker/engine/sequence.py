"""One request as the engine sees it: token ids in, token ids out. Text is the server's matter."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from enum import StrEnum

import torch


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """An end-of-text or stop token."""
    LENGTH = "length"
    """max_tokens, or the longest context."""
    ABORTED = "aborted"
    """The client went away, or time to drain was over."""
    FAILED = "failed"
    """The engine broke."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What the engine tells a request: a new token, the end, or both."""

    token: int | None
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to end."""

    max_tokens: int
    temperature: float = 1.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been generated for it."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    emit: Callable[[TokenEvent], None]
    """Called from the engine's thread; must not block."""
    tokens: list[int] = field(init=False)
    """Prompt and answer."""
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    block_table: list[int] = field(default_factory=list)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.generator = torch.Generator(device="cpu")
        self.generator.manual_seed(secrets.randbits(63) if self.params.seed is None else self.params.seed)

    @property
    def remaining(self) -> int:
        """Tokens that are known and not yet computed: 1 while decoding, more before."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> Ordered[int]:
        return self.tokens[len(self.prompt) :]

    def append(self, token: int) -> FinishReason | None:
        """Add a sampled token; the reason when it is the last."""
        self.tokens.append(token)
        if token in self.params.stop_token_ids:
            return FinishReason.STOP
        if len(self.tokens) - len(self.prompt) >= self.params.max_tokens:
            return FinishReason.LENGTH
        return None
