"""One request as the engine sees it: token ids in, token ids out. Text is the server's matter."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from enum import StrEnum

from plimsoll_worker.engine.block_pool import BlockHash, block_hash, root_hash
from plimsoll_worker.engine.guide import Allowed, Guide

GREEDY_BELOW = 1e-5
"""Temperatures below are greedy: dividing by them only overflows."""


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
    DEAD_END = "dead_end"
    """No token may come next by the grammar, or it is too much work to tell."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before temperature, penalties and bias."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with theirs, as many as were asked for."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What the engine tells a request: a new token, the end, or both."""

    token: int | None
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to end."""

    max_tokens: int
    min_tokens: int = 0
    """Until so many are generated, no stop token is chosen."""
    temperature: float = 1.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    """Least probability, as a part of the likeliest token's."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens of prompt and answer, multiplies the negative (Keskar et al.
    2019, arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens of the answer."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens of the answer, once for each time."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    logprobs: int | None = None
    """None: not asked for; else how many of the likeliest tokens to tell beside the chosen one."""
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    grammar: str | None = None
    """What the answer must follow, as llguidance has it; None: nothing."""

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def filtered(self) -> bool:
        """Whether unlikely tokens are left out."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    @property
    def plain(self) -> bool:
        """Whether temperature and seed alone decide: what a CUDA graph has built in."""
        return not (
            self.penalised
            or self.filtered
            or self.logit_bias
            or self.logprobs is not None
            or self.min_tokens > 0
            or self.grammar is not None
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been generated for it."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    emit: Callable[[TokenEvent], None]
    """Called from the engine's thread; must not block."""
    priority: int = 0
    """Lower goes first."""
    cache_salt: str = ""
    """Sequences share cached prefixes only with those of the same salt."""

    tokens: list[int] = field(init=False)
    """Prompt and answer, as far as they are known here."""
    guide: Guide | None = None
    """Its place in its grammar, if it has one."""
    allowed: Allowed | None = None
    """Which tokens the grammar lets come next; None: not found yet."""
    pending: int = 0
    """Tokens sampled on the device and not yet read: 0 or 1."""
    computed: int = 0
    """Tokens whose keys and values are in the cache once all launched steps are done."""
    cached_tokens: int | None = None
    """Tokens of the prompt found in the cache; None before the first step."""
    block_table: list[int] = field(default_factory=list)
    published: int = 0
    """Blocks of the table whose content others may share."""
    slot: int = -1
    """Row of the runner's tables while running."""
    admissions: int = 0
    """How often it was given a slot."""
    arrival: int = 0
    """Order of arrival, set by the scheduler."""
    submitted_at: float = 0.0
    """By the engine's clock."""
    queued_seconds: float | None = None
    """From there to its first step; None before."""
    seed: int = field(init=False)
    _hashes: list[BlockHash] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.seed = secrets.randbits(63) if self.params.seed is None else self.params.seed
        self._hashes = [root_hash(self.cache_salt)]

    @property
    def rank(self) -> tuple[int, int]:
        """Lower goes first and is preempted last."""
        return self.priority, self.arrival

    @property
    def generated(self) -> Ordered[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def known(self) -> int:
        """Tokens here and on the device."""
        return len(self.tokens) + self.pending

    @property
    def remaining(self) -> int:
        """Tokens to compute: 1 while decoding, more before, 0 when the last token is only to be read. The
        last one, whose logits the next is drawn from, waits for the grammar to say what may be drawn."""
        if self.known - len(self.prompt) >= self.params.max_tokens:
            return 0
        waits = self.params.grammar is not None and self.allowed is None
        return self.known - self.computed - waits

    def hashes(self, block_size: int, blocks: int) -> list[BlockHash]:
        """Names of the first `blocks` blocks; their tokens must be known."""
        while len(self._hashes) <= blocks:
            first = (len(self._hashes) - 1) * block_size
            self._hashes.append(block_hash(self._hashes[-1], self.tokens[first : first + block_size]))
        return self._hashes[1 : blocks + 1]

    def append(self, token: int) -> FinishReason | None:
        """Add a sampled token; the reason when it is the last."""
        self.tokens.append(token)
        self.pending = max(0, self.pending - 1)
        generated = len(self.tokens) - len(self.prompt)
        if token in self.params.stop_token_ids and generated > self.params.min_tokens:
            return FinishReason.STOP
        if generated >= self.params.max_tokens:
            return FinishReason.LENGTH
        return None
