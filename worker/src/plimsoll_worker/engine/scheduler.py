"""Chooses the tokens of the next step.

There is no prefill phase and no decode phase: every sequence has tokens that are known and not yet computed,
and a step hands out a budget of `max_batched_tokens` to them, decoding sequences first so that a long prompt
never stalls a running answer (the rule of vLLM's v1 scheduler). When blocks run out the youngest sequence
gives its own back and is computed again later; swapping them out was the alternative, and costs the memory it
wants to save.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The next `count` tokens of a sequence, to be computed in this step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether every known token is computed after this step, so that a new one can be sampled."""
        return self.count == self.sequence.remaining


class Scheduler:
    """Waiting and running sequences and the blocks they hold. Not thread-safe: the engine's thread owns
    it."""

    def __init__(self, pool: BlockPool, *, max_sequences: int, max_batched_tokens: int) -> None:
        self.pool = pool
        self.max_sequences = max_sequences
        self.max_batched_tokens = max_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Oldest first."""
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the pool by itself."""
        most = len(sequence.prompt) + sequence.params.max_tokens
        assert self.pool.needed(most) <= self.pool.blocks, (
            f"{most} tokens never fit {self.pool.blocks} blocks"
        )
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and take its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.release(sequence.block_table)

    def schedule(self) -> list[Scheduled]:
        """The next step; empty when there is nothing to do."""
        step: list[Scheduled] = []
        budget = self.max_batched_tokens
        for sequence in sorted(self.running, key=lambda sequence: sequence.remaining > 1):
            count = min(sequence.remaining, budget)
            if count and sequence in self.running and self._make_room(sequence, count, step):
                step.append(Scheduled(sequence, count))
                budget -= count
        while budget and self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            # Room for all that is known, and one token more: admitting on less only leads to preemption.
            if not self.pool.can_grow(sequence.block_table, len(sequence.tokens) + 1):
                break
            self.running.append(self.waiting.popleft())
            count = min(sequence.remaining, budget)
            self.pool.grow(sequence.block_table, count)
            step.append(Scheduled(sequence, count))
            budget -= count
        assert step or not self.waiting or self.running, "sequences wait while nothing runs"
        return step

    def _make_room(self, sequence: Sequence, count: int, step: list[Scheduled]) -> bool:
        """Blocks for `count` more tokens, taken from younger sequences if need be; False: it had to go
        itself."""
        tokens = sequence.computed + count
        taken = {id(scheduled.sequence) for scheduled in step}
        while not self.pool.can_grow(sequence.block_table, tokens):
            victim = next(other for other in reversed(self.running) if id(other) not in taken)
            self._preempt(victim)
            if victim is sequence:
                return False
        self.pool.grow(sequence.block_table, tokens)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.block_table)
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def check_integrity(self) -> None:
        """The books add up. Raises AssertionError."""
        self.pool.check_integrity(sequence.block_table for sequence in self.running)
        assert not any(sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        for sequence in self.running:
            held = len(sequence.block_table) * self.pool.block_size
            assert sequence.computed <= held, (
                f"sequence {sequence.id} computed {sequence.computed}, room for {held}"
            )
