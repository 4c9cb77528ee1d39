"""A model over several stages: the first one has the engine and orders each step, the others compute their
layers of it, the last one sends the tokens back.

    stage 0   schedule a, compute a ─► schedule b, compute b ─► read a, schedule a', compute a' ─► …
    stage 1                            compute a ── tokens ───► compute b ── tokens ───────────► …

As many steps are in flight as there are stages, each with its share of the sequences, so no stage waits for
another. A sequence is scheduled again when its token is back: the scheduler's books then hold what every
stage has done, and an order never speaks of a token that only another machine knows.

All messages go over the lines of the rendezvous, hidden states too, from host memory. NCCL between pods was
the alternative: it needs addresses and ports of its own, and hangs where a TCP connection ends with a reason.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from queue import SimpleQueue
from typing import Protocol

import torch

from plimsoll_worker.engine.in_flight import InFlight
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.sequence import Sequence, TokenLogprobs
from plimsoll_worker.parallel.crossing import Crossing
from plimsoll_worker.parallel.mirror import Mirror
from plimsoll_worker.parallel.rendezvous import Lines

STEP, FAREWELL, TOKENS, WARM, LEAVING = (bytes([kind]) for kind in range(5))
"""The first byte of a message tells its kind. To the stages: STEP, WARM, FAREWELL. From them: TOKENS, WARM,
LEAVING."""
FAREWELL_SECONDS = 3.0
"""A neighbour that was told to end may hang up before this stage hears the same."""

Answer = list[tuple[int, TokenLogprobs | None]]


class StageRunner(Protocol):
    """What computes the layers of this stage."""

    def launch(self, step: Ordered[Scheduled]) -> InFlight:
        """Begin to compute a step."""
        ...


class Pipeline:
    """One stage's end of it, from the moment all have met."""

    def __init__(self, lines: Lines, lost: Callable[[str], None], leaving: Callable[[], None]) -> None:
        """`lost` hears that a stage is gone without a farewell, and which; `leaving`, on the first stage,
        that another one was told to end. Both in threads of the lines."""
        self._lines = lines
        self._lost, self._leaving = lost, leaving
        self._ended = threading.Event()
        self._steps: SimpleQueue[memoryview | None] = SimpleQueue()
        self._answers: SimpleQueue[bytearray] = SimpleQueue()
        self._warm: SimpleQueue[int] = SimpleQueue()
        self._hidden: SimpleQueue[bytearray] = SimpleQueue()
        self._crossing: Crossing | None = None
        for line in lines.orders.values():
            line.listen(self._hear, self._gone)
        if lines.before:
            lines.before.listen(self._hidden.put, self._gone)
        if lines.after:
            lines.after.listen(self._hidden.put, self._gone)  # nothing comes but its end

    def join(self, runner: ModelRunner) -> None:
        """Let the runner of this stage exchange hidden states with its neighbours from now on."""
        before, after, model = self._lines.before, self._lines.after, runner.model
        tokens = max(runner.max_batched_tokens, runner.max_sequences)
        self._crossing = runner.neighbours = Crossing(
            self._hidden if before else None,
            after.put if after else None,
            self._lost,
            shape=(tokens, model.config.hidden_size),
            dtype=model.dtype,
            device=model.device,
        )

    # Both sides

    def least(self, number: int) -> int:
        """The smallest number that any stage says: all call it once they are warmed up."""
        if 0 in self._lines.orders:
            self._lines.orders[0].put(WARM, number.to_bytes(8, "big"))
            return self._warm.get()
        least = min(number, *(self._warm.get() for _ in self._lines.orders))
        for line in self._lines.orders.values():
            line.put(WARM, least.to_bytes(8, "big"))
        return least

    def leave(self) -> None:
        """This stage was told to end: the first one finishes what runs, and ends all. For signal handlers."""
        self._lines.orders[0].put(LEAVING)

    def close(self) -> None:
        """The end of all stages, in good order. On the first stage: no step may be in flight."""
        self._ended.set()
        if self._crossing:
            self._crossing.close()
        if 0 not in self._lines.orders:
            for line in self._lines.orders.values():
                line.put(FAREWELL)
        self._lines.close()

    # The first stage

    def order(self, step: bytes) -> None:
        """Tell all stages a step, as `Orders` encodes it."""
        for line in self._lines.orders.values():
            line.put(STEP, step)

    def awaiting(self, runner: StageRunner) -> Awaiting:
        """The runner of the engine. `runner` orders the step and computes this stage's layers."""
        return Awaiting(runner, len(self._lines.orders), self._answers)

    # All others

    def follow(self, runner: StageRunner, tell: Callable[[bytes], None] = lambda _: None) -> None:
        """Compute what the first stage orders, until its farewell. `tell` passes each order on to the other
        ranks of this stage."""
        mirror, last = Mirror(), self._lines.after is None
        answering = _Answering(self._lines) if last else None
        while (order := self._steps.get()) is not None:
            tell(bytes(order))
            flight = runner.launch(mirror.apply(order))
            if answering:
                answering.put(flight)
        if answering:
            answering.close()

    def _hear(self, message: bytearray) -> None:
        kind, rest = bytes(message[:1]), memoryview(message)[1:]
        if kind == STEP:
            self._steps.put(rest)
        elif kind == TOKENS:
            self._answers.put(message)
        elif kind == WARM:
            self._warm.put(int.from_bytes(rest, "big"))
        elif kind == LEAVING:
            self._leaving()
        elif kind == FAREWELL:
            self._ended.set()
            self._steps.put(None)
        else:
            self._lost(f"a stage says what nobody here understands: kind {kind.hex()}")

    def _gone(self, stage: int, why: str) -> None:
        if not self._ended.wait(FAREWELL_SECONDS):
            self._lost(f"stage {stage} is gone ({why}); its pod says why")


class Awaiting:
    """A runner whose tokens the last stage chooses: as many steps in flight as there are stages."""

    def __init__(self, runner: StageRunner, others: int, answers: SimpleQueue[bytearray]) -> None:
        self.steps_ahead = others
        self._runner, self._answers = runner, answers

    def launch(self, step: Ordered[Scheduled]) -> InFlight:
        """Begin to compute a step on all stages."""
        self._runner.launch(step)
        return _Awaited([part.sequence for part in step if part.completes], self._answers)


class _Awaited(InFlight):
    """A step that another stage samples. Steps are answered in their order."""

    def __init__(self, sequences: Ordered[Sequence], answers: SimpleQueue[bytearray]) -> None:
        super().__init__(sequences, torch.empty(0), {}, None)
        self._awaited, self._answers = sequences, answers

    def tokens(self) -> Iterator[tuple[Sequence, int, TokenLogprobs | None]]:
        """Wait for the step; each completed sequence with its token."""
        answer = decode_answer(self._answers.get())
        for sequence, (token, logprobs) in zip(self._awaited, answer, strict=True):
            yield sequence, token, logprobs


class _Answering:
    """Reads steps as they are done and sends their tokens, beside the thread that launches the next one."""

    def __init__(self, lines: Lines) -> None:
        self._line = lines.orders[0]
        self._flights: SimpleQueue[InFlight | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._answer, name="answering", daemon=True)
        self._thread.start()

    def put(self, flight: InFlight) -> None:
        self._flights.put(flight)

    def close(self) -> None:
        self._flights.put(None)
        self._thread.join()

    def _answer(self) -> None:
        while (flight := self._flights.get()) is not None:
            self._line.put(encode_answer([(token, told) for _, token, told in flight.tokens()]))


def encode_answer(answer: Answer) -> bytes:
    """Tokens of a step, with their log probabilities where they were asked for."""
    rows = [(token, told and [told.chosen, told.top]) for token, told in answer]
    return TOKENS + json.dumps(rows).encode()


def decode_answer(message: bytes | bytearray) -> Answer:
    """What `encode_answer` made."""
    return [
        (token, told and TokenLogprobs(told[0], tuple((int(which), value) for which, value in told[1])))
        for token, told in json.loads(bytes(message[1:]))
    ]
