"""The engine's parts by themselves: blocks, turns, choices; and that all books add up whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.worker.decoding import paged, sequence, steps
from tests.unit.worker.test_models import saved

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine, EngineClosed, QueueFull
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import FinishReason, SamplingParams, Sequence, TokenEvent
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model


def pretend(scheduler: Scheduler) -> list[tuple[str, int]]:
    """One step as the engine takes it, without a model: every completed sequence gets the token 7."""
    step = scheduler.schedule()
    scheduler.check_integrity()
    taken = [(scheduled.sequence.id, scheduled.count) for scheduled in step]
    completed = [scheduled.sequence for scheduled in step if scheduled.completes]
    for done in completed:
        if done.append(7) is not None:
            scheduler.remove(done)
    return taken


def test_decoding_goes_before_a_long_prompt() -> None:
    scheduler = Scheduler(BlockPool(100, 4), max_sequences=3, max_batched_tokens=10)
    scheduler.add(sequence((1, 2, 3), name="first"))
    assert pretend(scheduler) == [("first", 3)]
    scheduler.add(sequence((1,) * 25, name="long"))
    assert pretend(scheduler) == [("first", 1), ("long", 9)]
    assert pretend(scheduler) == [("first", 1), ("long", 9)]
    assert pretend(scheduler) == [("first", 1), ("long", 7)]
    assert pretend(scheduler) == [("first", 1), ("long", 1)]


def test_no_more_sequences_run_than_may() -> None:
    scheduler = Scheduler(BlockPool(100, 4), max_sequences=2, max_batched_tokens=100)
    for name in "abc":
        scheduler.add(sequence((1, 2), name=name, max_tokens=2))
    assert pretend(scheduler) == [("a", 2), ("b", 2)]
    assert pretend(scheduler) == [("a", 1), ("b", 1)]
    assert pretend(scheduler) == [("c", 2)]


def test_the_youngest_gives_its_blocks_to_the_oldest_and_is_computed_again() -> None:
    scheduler = Scheduler(BlockPool(6, 4), max_sequences=3, max_batched_tokens=100)
    old, young = (
        sequence((1,) * 10, name="old", max_tokens=10),
        sequence((2,) * 7, name="young", max_tokens=10),
    )
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.preemptions:
        pretend(scheduler)
    assert [waiting.id for waiting in scheduler.waiting] == ["young"]
    assert (young.computed, young.block_table) == (0, [])
    known = len(young.tokens)
    assert known > 7
    while old in scheduler.running:
        pretend(scheduler)
    # What the cache still has of it is not computed again.
    ((name, count),) = pretend(scheduler)
    assert (name, young.computed) == ("young", known)
    assert 0 < count <= known
    while scheduler.running:
        pretend(scheduler)
    assert len(young.generated) == len(old.generated) == 10
    assert scheduler.pool.used == 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12),
    blocks=st.integers(13, 30),
    budget=st.integers(1, 40),
    most=st.integers(1, 5),
    removed=st.sets(st.integers(0, 11), max_size=4),
)
def test_every_sequence_ends_and_no_block_is_lost(
    lengths: list[tuple[int, int]], blocks: int, budget: int, most: int, removed: set[int]
) -> None:
    scheduler = Scheduler(BlockPool(blocks, 4), max_sequences=most, max_batched_tokens=budget)
    sequences = [
        sequence((1,) * prompt, name=str(number), max_tokens=answer)
        for number, (prompt, answer) in enumerate(lengths)
    ]
    for waiting in sequences:
        scheduler.add(waiting)
    for turn in range(5000):
        if turn == 3:
            for number in removed & set(range(len(sequences))):
                if sequences[number] in scheduler.running or sequences[number] in scheduler.waiting:
                    scheduler.remove(sequences[number])
        if not scheduler.running and not scheduler.waiting:
            break
        assert 0 < sum(count for _, count in pretend(scheduler)) <= budget
    assert scheduler.pool.used == 0
    for number, (_, answer) in enumerate(lengths):
        if number not in removed:
            assert len(sequences[number].generated) == answer


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("small")
    saved("Llama", {}, folder)
    model = load_model(open_checkpoint(folder), device=torch.device("cpu"), precision=Precision.FP32)
    return paged(model, blocks=12, block_size=4)


def test_an_answer_does_not_depend_on_who_else_is_there_or_on_preemption(runner: ModelRunner) -> None:
    def answers(prompts: list[tuple[int, ...]], budget: int) -> list[list[int]]:
        sequences = [sequence(prompt, name=str(i), max_tokens=14) for i, prompt in enumerate(prompts)]
        for current, logits in steps(runner, sequences, max_batched_tokens=budget):
            current.append(int(logits.argmax()))
        return [list(done.generated) for done in sequences]

    prompts = [(5, 6, 7), (8,) * 9, tuple(range(20)), (50, 60)]
    alone = [answers([prompt], 64)[0] for prompt in prompts]
    # 12 blocks of 4 tokens for up to 3 + 9 + 20 + 2 + 4 x 14: not all fit at a time.
    assert answers(prompts, 64) == alone
    assert answers(prompts, 3) == alone


@pytest.fixture
def engine(runner: ModelRunner) -> Iterator[Engine]:
    scheduler = Scheduler(BlockPool(12, 4), max_sequences=2, max_batched_tokens=16)
    made = Engine(runner, scheduler)
    yield made
    made.drain(0)


class Listener:
    """A request that remembers what it was told."""

    def __init__(self, prompt: tuple[int, ...], **params: int) -> None:
        self.events: list[TokenEvent] = []
        self.ended = threading.Event()
        settings = SamplingParams(**{"max_tokens": 5, "temperature": 0, **params})
        self.sequence = Sequence(id=str(id(self)), prompt=prompt, params=settings, emit=self._hear)

    def _hear(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.finish is not None:
            self.ended.set()

    @property
    def finish(self) -> FinishReason | None:
        return self.events[-1].finish if self.events else None


def test_an_engine_serves_until_it_is_drained(engine: Engine) -> None:
    listeners = [Listener((number, 2, 3)) for number in range(5)]
    for listener in listeners:
        engine.submit(listener.sequence)
    engine.drain(60)
    engine.run()
    assert [listener.finish for listener in listeners] == [FinishReason.LENGTH] * 5
    assert all(len(listener.events) == 5 for listener in listeners)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0)
    with pytest.raises(EngineClosed):
        engine.submit(Listener((1,)).sequence)


def test_a_drain_without_time_aborts_what_runs(engine: Engine) -> None:
    listener = Listener((1, 2), max_tokens=40)
    engine.submit(listener.sequence)
    engine.drain(0)
    engine.run()
    assert listener.finish is FinishReason.ABORTED
    assert engine.stats().kv_usage == 0


def test_an_aborted_sequence_frees_its_blocks_and_others_go_on(engine: Engine) -> None:
    gone, stays = Listener((1, 2), max_tokens=40), Listener((3, 4))
    engine.submit(gone.sequence)
    engine.submit(stays.sequence)
    engine.abort(gone.sequence.id)
    engine.abort("nobody")
    engine.drain(60)
    engine.run()
    assert gone.finish is FinishReason.ABORTED
    assert stays.finish is FinishReason.LENGTH


def test_the_queue_is_bounded_and_says_when_to_come_back(engine: Engine) -> None:
    for _ in range(engine.max_live):
        engine.submit(Listener((1,), max_tokens=1).sequence)
    with pytest.raises(QueueFull, match="16 requests wait already") as caught:
        engine.submit(Listener((1,)).sequence)
    assert caught.value.retry_after > 0
    engine.drain(60)
    engine.run()


def test_a_broken_step_fails_every_sequence_and_the_engine(engine: Engine, runner: ModelRunner) -> None:
    listener = Listener((96, 97))  # 97 is one past the vocabulary
    engine.submit(listener.sequence)
    with pytest.raises(IndexError):
        engine.run()
    assert listener.finish is FinishReason.FAILED
    assert engine.closed


def test_files_of_the_engine_stay_small() -> None:
    import plimsoll_worker

    for path in Path(plimsoll_worker.__file__).parent.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
