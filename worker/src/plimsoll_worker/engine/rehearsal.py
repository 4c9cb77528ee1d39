"""The steps that take the most memory, made up so that a start can run them before anybody asks.

Sizes are what counts, not contents: all sequences share the same few cache blocks. Every row asks for every
option of sampling, because a request that is the first to ask for penalties must not be the first to need
their memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from plimsoll_worker.engine.guide import Allowed
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.sequence import SamplingParams, Sequence, TokenEvent

LOGPROBS = 20
"""As many of the likeliest tokens as the API lets anyone ask for."""


def longest_steps(
    *, tokens: int, context: int, sequences: int, block_size: int, vocabulary: int
) -> Iterator[list[Scheduled]]:
    """A full budget of prompt tokens at the end of the longest contexts, then a decode step of `sequences`
    rows that ask for everything, then one that asks for nothing."""
    rich = SamplingParams(
        max_tokens=1,
        min_tokens=1,
        temperature=1.0,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={0: 1.0},
        logprobs=min(LOGPROBS, vocabulary),
        stop_token_ids=frozenset({0}),
        grammar="",
        seed=0,
    )
    everything = b"\xff" * (4 * -(-vocabulary // 32))
    plain = SamplingParams(max_tokens=1, temperature=1.0, seed=0)
    yield _prompts(rich, everything, tokens, context, sequences, block_size)
    for params, allowed in ((rich, everything), (plain, None)):
        yield [
            _part(params, allowed, slot, context - 1, 1, block_size) for slot in range(min(sequences, tokens))
        ]


def chunk(tokens: int, block_size: int) -> list[Scheduled]:
    """One sequence's second part: `tokens` tokens behind a first one."""
    return [_part(SamplingParams(max_tokens=1), None, 0, 1, tokens, block_size)]


def _prompts(
    params: SamplingParams,
    allowed: Allowed | None,
    tokens: int,
    context: int,
    sequences: int,
    block_size: int,
) -> list[Scheduled]:
    """As many sequences as may run share `tokens` tokens: one takes what the others leave."""
    rows = min(sequences, tokens)
    step = []
    for slot in range(rows):
        count = min(context, tokens - (rows - slot - 1))
        step.append(_part(params, allowed, slot, context - count, count, block_size))
        tokens -= count
    return step


def _part(
    params: SamplingParams, allowed: Allowed | None, slot: int, start: int, count: int, block_size: int
) -> Scheduled:
    made_up = Sequence(id=f"rehearsal-{slot}", prompt=(0,) * (start + count), params=params, emit=_ignore)
    made_up.slot = slot
    made_up.block_table = list(range(-(-(start + count) // block_size)))
    return Scheduled(made_up, start, count, completes=True, allowed=allowed)


def _ignore(event: TokenEvent) -> None:
    del event
