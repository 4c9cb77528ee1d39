"""The loop that serves: takes requests from other threads, runs step after step, hands tokens out.

The engine has a thread of its own (the process's main thread), the HTTP server another: torch releases the
interpreter lock while it computes, so requests are parsed and streams written in the meantime. All that
crosses is a queue of commands one way and `emit` callbacks the other; nothing else is shared, so nothing else
needs a lock.

On a GPU step N + 1 is launched before the tokens of step N are read, so that the device never waits for
Python:

    schedule 1, launch 1
    schedule 2, launch 2, read 1        an end found in 1 makes 2's token of that sequence void
    schedule 3, launch 3, read 2

Which token may follow the one just read, where a grammar has a say in it, is found by other threads, whose
answer comes as one more command.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from plimsoll_worker.engine.guide import Allowed, Grammars
from plimsoll_worker.engine.in_flight import InFlight
from plimsoll_worker.engine.scheduler import Scheduled, Scheduler
from plimsoll_worker.engine.sequence import FinishReason, Sequence, TokenEvent

QUEUED_PER_RUNNING = 8
"""Requests that may wait, per sequence that may run: with more a client waits longer than it is likely to
listen."""


class QueueFull(Exception):
    """As many requests wait as the engine takes; `retry_after` seconds is a fair guess at when one is
    done."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine drains or is dead."""


class Runner(Protocol):
    """What computes steps."""

    @property
    def steps_ahead(self) -> int:
        """Steps to launch before the first one's tokens are read: 1 where a device works by itself."""
        ...

    def launch(self, step: Ordered[Scheduled]) -> InFlight:
        """Begin to compute a step."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A glance at the engine for /metrics."""

    running: int
    waiting: int
    kv_usage: float
    """Part of the KV blocks in use, 0 to 1."""
    preemptions: int
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int
    """Prompt tokens found there."""


class Engine:
    """Serves sequences until it is drained."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
        stepped: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`stepped` hears how many tokens each step computes. Without `grammars` no sequence may have one."""
        self.max_live = scheduler.max_sequences * (1 + QUEUED_PER_RUNNING)
        self._runner = runner
        self._scheduler = scheduler
        self._grammars = grammars
        self._clock = clock
        self._stepped = stepped
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._sequences: dict[str, Sequence] = {}
        self._flights: deque[InFlight] = deque()
        self._stalled = False
        """There is nothing to compute and nothing to read: everybody waits for what may follow a token."""
        self._live = 0
        self._live_lock = threading.Lock()
        self._closed = False
        self._deadline: float | None = None
        self._busy_since: float | None = None

    # From any thread.

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises QueueFull, EngineClosed."""
        if self._closed:
            raise EngineClosed("the worker is shutting down; another replica will answer")
        with self._live_lock:
            if self._live >= self.max_live:
                raise QueueFull(self._live - self._scheduler.max_sequences, retry_after=5)
            self._live += 1
        self._commands.put(lambda: self._start(sequence))

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence and free its blocks; one that has ended is no error."""
        self._commands.put(lambda: self._abort(sequence_id))

    def drain(self, seconds: float) -> None:
        """Take nothing new, finish what runs for up to `seconds`, then abort the rest and return from `run`.

        Safe to call from a signal handler.
        """
        self._closed = True
        deadline = self._clock() + seconds
        self._commands.put(lambda: self._set_deadline(deadline))

    @property
    def closed(self) -> bool:
        return self._closed

    def stats(self) -> EngineStats:
        pool = self._scheduler.pool
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_usage=pool.used / pool.blocks,
            preemptions=self._scheduler.preemptions,
            prefix_queries=self._scheduler.prefix_queries,
            prefix_hits=self._scheduler.prefix_hits,
        )

    def busy_seconds(self) -> float:
        """How long the step at hand has taken so far; 0 between steps."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    # The engine's own thread.

    def run(self) -> None:
        """Serve until drained. An exception of a step ends every sequence as failed and is raised."""
        try:
            while not self._drained():
                self._turn()
        except BaseException:
            self._closed = True
            for sequence in self._sequences.values():
                sequence.emit(TokenEvent(None, FinishReason.FAILED))
            raise
        self._obey(wait=False)
        for sequence_id in list(self._sequences):
            self._abort(sequence_id)

    def settle(self) -> None:
        """Work until every sequence has ended: for who has no other thread, instead of `run`."""
        self._obey(wait=False)
        while self._sequences or self._flights:
            self._turn()

    def _turn(self) -> None:
        self._obey(wait=not self._flights and (self._stalled or not self._sequences))
        self._step()

    def _drained(self) -> bool:
        if self._deadline is None:
            return False
        return self._clock() >= self._deadline or (not self._sequences and self._commands.empty())

    def _obey(self, *, wait: bool) -> None:
        """Carry out the commands at hand; with nothing else to do, wait for one."""
        try:
            if wait:
                self._commands.get()()
            while True:
                self._commands.get_nowait()()
        except Empty:
            return

    def _step(self) -> None:
        self._busy_since = self._clock()
        step = self._scheduler.schedule()
        self._stalled = not step and not self._flights
        if step:
            self._flights.append(self._runner.launch(step))
            self._note(step)
        # Nobody can go on: the oldest step has what they wait for.
        ahead = self._runner.steps_ahead if step else max(0, len(self._flights) - 1)
        while len(self._flights) > ahead:
            self._read(self._flights.popleft())
        self._busy_since = None

    def _note(self, step: Ordered[Scheduled]) -> None:
        for scheduled in step:
            if scheduled.sequence.queued_seconds is None:
                scheduled.sequence.queued_seconds = self._clock() - scheduled.sequence.submitted_at
        self._stepped(sum(scheduled.count for scheduled in step))

    def _read(self, flight: InFlight) -> None:
        """Hand out the tokens of a step."""
        guided = []
        for sequence, token, logprobs in flight.tokens():
            if sequence.id not in self._sequences:  # it ended after this step was launched
                continue
            finish = sequence.append(token)
            if finish is None:
                self._scheduler.publish(sequence)
                if sequence.guide is not None:
                    guided.append((sequence, sequence.guide, token))
            else:
                self._forget(sequence)
            sequence.emit(TokenEvent(token, finish, logprobs))
        if guided:
            assert self._grammars is not None
            found = self._grammars.follow([(guide, (token,)) for _, guide, token in guided])
            self._await([sequence for sequence, _, _ in guided], found)

    def _start(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        sequence.submitted_at = self._clock()
        self._scheduler.add(sequence)
        if sequence.params.grammar is not None:
            assert self._grammars is not None, "an engine without a tokenizer knows no grammars"
            sequence.guide = self._grammars.guide(sequence.params.grammar)
            self._await([sequence], self._grammars.begin(sequence.guide))

    def _await(self, sequences: Ordered[Sequence], found: Future[list[Allowed | None]]) -> None:
        """Go on with these sequences once it is known what may come next in each."""
        found.add_done_callback(
            lambda done: self._commands.put(lambda: self._allow(sequences, done.result()))
        )

    def _allow(self, sequences: Ordered[Sequence], found: Ordered[Allowed | None]) -> None:
        for sequence, allowed in zip(sequences, found, strict=True):
            if sequence.id not in self._sequences:  # it was aborted meanwhile
                continue
            sequence.allowed = allowed
            if allowed is None:
                self._forget(sequence)
                sequence.emit(TokenEvent(None, FinishReason.DEAD_END))

    def _abort(self, sequence_id: str) -> None:
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            self._forget(sequence)
            sequence.emit(TokenEvent(None, FinishReason.ABORTED))

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.id]
        if sequence.guide is not None:
            sequence.guide.give_up()
        with self._live_lock:
            self._live -= 1
        assert self._sequences or not self._scheduler.pool.used, "blocks are held while nothing runs"

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
