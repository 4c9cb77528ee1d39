"""Chooses the tokens of the next step.

There is no prefill phase and no decode phase: every sequence has tokens that are known and not yet computed,
and a step hands out a budget of `max_batched_tokens` to them, decoding sequences first so that a long prompt
never stalls a running answer (the rule of vLLM's v1 scheduler). When blocks run out the last in rank gives
its own back and is computed again later, mostly from the prefix cache; swapping them out was the
alternative, and costs the memory it wants to save.

Steps are scheduled before the tokens of the step before are known: a sampled token counts as `pending` until
it is read. Over several stages a sequence waits for its token, and a step takes its share of the sequences,
so that every stage has one. Blocks may be given on at once all the same, because each device works off steps
in order. An answer under a grammar cannot go on before its token is read: it sits out steps that others take
part in.
"""

from __future__ import annotations

import heapq
from bisect import insort
from dataclasses import dataclass

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.guide import Allowed
from plimsoll_worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Tokens `start` to `start + count` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    count: int
    completes: bool
    """Whether every known token is computed after this step, so that a new one is sampled."""
    allowed: Allowed | None = None
    """Where it is: the tokens that may be sampled; None: all."""


class Scheduler:
    """Waiting and running sequences and the blocks they hold. Not thread-safe: the engine's thread owns
    it."""

    def __init__(
        self, pool: BlockPool, *, max_sequences: int, max_batched_tokens: int, stages: int = 1
    ) -> None:
        """`stages`: over how many the layers are divided; each has a step of its own at the same time."""
        self.pool = pool
        self.stages = stages
        self.max_sequences = max_sequences
        self.max_batched_tokens = max_batched_tokens
        self.waiting: list[Sequence] = []
        """By rank."""
        self.running: list[Sequence] = []
        """By rank."""
        self.preemptions = 0
        self.prefix_queries = 0
        """Prompt tokens looked up in the prefix cache."""
        self.prefix_hits = 0
        """Prompt tokens found there."""
        self._arrivals = 0
        self._slots = list(range(max_sequences))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the pool by itself."""
        most = len(sequence.prompt) + sequence.params.max_tokens
        assert self.pool.needed(most) <= self.pool.blocks, (
            f"{most} tokens never fit {self.pool.blocks} blocks"
        )
        self._arrivals += 1
        sequence.arrival = self._arrivals
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and take its blocks back."""
        if sequence in self.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step, counted as computed from now on. Empty when there is nothing to do before tokens in
        flight are read, or nothing at all."""
        step: list[Scheduled] = []
        budget = self.max_batched_tokens
        share = -(-len(self.running) // self.stages)
        for sequence in sorted(self.running, key=lambda sequence: sequence.remaining > 1):
            if self.stages > 1 and (sequence.pending or len(step) == share):
                continue  # its token is on another machine, or it is for the next stage's step
            count = min(sequence.remaining, budget)
            if count and sequence.slot >= 0 and self._make_room(sequence, count, step):
                budget -= self._take(sequence, count, step)
        while budget and (admitted := self._admit()) is not None:
            if count := min(admitted.remaining, budget):
                self.pool.grow(admitted.block_table, admitted.computed + count)
                budget -= self._take(admitted, count, step)
        return step

    def publish(self, sequence: Sequence) -> None:
        """Offer what is full of known and computed tokens to others that begin alike."""
        size = self.pool.block_size
        full = min(sequence.computed, len(sequence.tokens)) // size
        if full > sequence.published:
            names = sequence.hashes(size, full)
            for index in range(sequence.published, full):
                self.pool.publish(sequence.block_table[index], names[index])
            sequence.published = full

    def _take(self, sequence: Sequence, count: int, step: list[Scheduled]) -> int:
        start = sequence.computed
        sequence.computed += count
        completes = sequence.computed == sequence.known
        allowed = sequence.allowed if completes else None
        if completes:
            sequence.pending += 1
            sequence.allowed = None
        # A step of single tokens writes the cache in the kernel that reads it, so nobody in this step may
        # read what a single token fills: it is offered when the step is read.
        if count > 1:
            self.publish(sequence)
        step.append(Scheduled(sequence, start, count, completes, allowed))
        return count

    def _admit(self) -> Sequence | None:
        """The first in the queue, running from now on with what the cache has of it; None: it must wait."""
        if not self.waiting or not self._slots:
            return None
        sequence = self.waiting[0]
        if sequence.pending:  # preempted, its last token still in flight
            return None
        size, known = self.pool.block_size, len(sequence.tokens)
        # At least one token is computed: its logits are what the sequence runs for.
        shared = self.pool.match(sequence.hashes(size, (known - 1) // size))
        # Room for all that is known, and one token more: admitting on less only leads to preemption.
        if not self.pool.can_admit(shared, known + 1):
            return None
        self.pool.share(sequence.block_table, shared)
        sequence.computed = len(shared) * size
        sequence.published = len(shared)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.prefix_queries += known
            self.prefix_hits += sequence.computed
        sequence.slot = heapq.heappop(self._slots)
        sequence.admissions += 1
        insort(self.running, self.waiting.pop(0), key=_rank)
        return sequence

    def _make_room(self, sequence: Sequence, count: int, step: list[Scheduled]) -> bool:
        """Blocks for `count` more tokens, taken from sequences of lower rank if need be; False: it had to go
        itself."""
        tokens = sequence.computed + count
        while not self.pool.can_grow(sequence.block_table, tokens):
            taken = {id(scheduled.sequence) for scheduled in step}
            victim = next(other for other in reversed(self.running) if id(other) not in taken)
            self._preempt(victim)
            if victim is sequence:
                return False
        self.pool.grow(sequence.block_table, tokens)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        insort(self.waiting, sequence, key=_rank)
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.publish(sequence)
        self.pool.release(sequence.block_table)
        heapq.heappush(self._slots, sequence.slot)
        sequence.slot = -1
        sequence.computed = sequence.published = 0

    def check_integrity(self) -> None:
        """The books add up. Raises AssertionError."""
        self.pool.check_integrity(sequence.block_table for sequence in self.running)
        assert not any(sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        slots = sorted([*self._slots, *(sequence.slot for sequence in self.running)])
        assert slots == list(range(self.max_sequences)), f"slots {slots} are free or taken"
        for sequence in self.running:
            held = len(sequence.block_table) * self.pool.block_size
            assert sequence.computed <= held, (
                f"sequence {sequence.id} computed {sequence.computed}, room for {held}"
            )
            assert sequence.published * self.pool.block_size <= sequence.computed, (
                f"{sequence.id} offers {sequence.published} blocks, computed {sequence.computed} tokens"
            )


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
