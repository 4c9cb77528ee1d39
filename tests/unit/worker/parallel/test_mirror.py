"""A mirror launches what the leader launches, whatever happened before."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.worker.decoding import paged, sequence
from tests.unit.worker.test_models import SMALL, configuration
from tests.unit.worker.test_scheduler_books import Pretender

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.in_flight import InFlight
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduled, Scheduler
from plimsoll_worker.engine.sequence import Sequence
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.parallel.mirror import Mirror, Orders, OutOfStep
from plimsoll_worker.settings import LoadFormat

ASKED = (
    {},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.0, "top_p": 0.7, "top_k": 9, "min_p": 0.02},
    {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": -0.4},
    {"logprobs": 4, "logit_bias": {3: 2.5, 11: -100.0}},
    {"min_tokens": 6, "stop_token_ids": frozenset({2, 4})},
)


class Mirrored(Scheduler):
    """Holds every step against what a mirror makes of it."""

    def __init__(self, pool: BlockPool, chance: random.Random, *, tells_tokens: bool, **limits: int) -> None:
        super().__init__(pool, **limits)
        self.tells_tokens = tells_tokens
        self.orders, self.mirror = Orders(tells_tokens=tells_tokens), Mirror()
        self.told: dict[int, Sequence] = {}
        self.chance = chance

    def schedule(self) -> list[Scheduled]:
        step = super().schedule()
        asked = [
            replace(part, allowed=self.chance.randbytes(13)) if self.chance.random() < 0.1 else part
            for part in step
        ]
        made = self.mirror.apply(self.orders.encode(asked))
        assert [(part.start, part.count, part.completes, part.allowed) for part in made] == [
            (part.start, part.count, part.completes, part.allowed) for part in asked
        ]
        for ours, theirs in zip(step, made, strict=True):
            one, other = ours.sequence, theirs.sequence
            assert (one.slot, one.params, one.seed) == (other.slot, other.params, other.seed)
            assert one.block_table == other.block_table
            assert one.prompt == other.prompt
            assert one.tokens[: len(other.tokens)] == other.tokens
            assert one.tokens == other.tokens or not self.tells_tokens
            if self.told.get(one.slot) is not other:  # a row that `SlotTables.admit` writes
                assert one.tokens == other.tokens
                self.told[one.slot] = other
        return step


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_every_step_of_a_random_history_arrives(ahead: int) -> None:
    chance = random.Random(ahead)
    scheduler = Mirrored(
        BlockPool(30, 4), chance, tells_tokens=ahead > 0, max_sequences=6, max_batched_tokens=17
    )
    loop = Pretender(scheduler, ahead)
    system = (1, 2, 3, 4, 5, 6, 7, 8)
    for number in range(200):
        prompt = (
            *system[: chance.choice((0, 8))],
            *(chance.randrange(5) for _ in range(chance.randint(1, 30))),
        )
        params = {**chance.choice(ASKED), "max_tokens": chance.randint(1, 20)}
        # The k-th of n answers shares its prompt with the others.
        for answer in range(chance.choice((1, 1, 3))):
            loop.add(sequence(prompt, name=f"{number}.{answer}", **params))
        if chance.random() < 0.3:
            loop.abort(chance.choice(list(loop.live)))
        while len(loop.live) > 8:
            loop.step()
    while loop.live or loop.flights:
        loop.step()
    assert scheduler.preemptions > 10
    assert scheduler.prefix_hits > 100


class Doubled:
    """A runner and its mirror, which must choose the same tokens."""

    steps_ahead = 0

    def __init__(self, leader: ModelRunner, mirror: ModelRunner) -> None:
        self.leader, self.mirror = leader, mirror
        self.orders, self.applied = Orders(), Mirror()

    def launch(self, step: list[Scheduled]) -> InFlight:
        message = self.orders.encode(step)
        flight, again = self.leader.launch(step), self.mirror.launch(self.applied.apply(message))
        ours, theirs = list(flight.tokens()), list(again.tokens())
        assert [told[1:] for told in ours] == [told[1:] for told in theirs]
        return flight


def test_its_runner_chooses_the_same_tokens_and_tells_the_same_log_probabilities(tmp_path: Path) -> None:
    configuration("Llama")(**SMALL).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, LoadFormat.DUMMY)
    model = load_model(checkpoint, device=torch.device("cpu"), precision=Precision.FP32)
    pool = BlockPool(24, 4)
    scheduler = Scheduler(pool, max_sequences=8, max_batched_tokens=32)
    leader, mirror = (paged(model, blocks=24, block_size=4) for _ in range(2))
    engine = Engine(Doubled(leader, mirror), scheduler)
    chance = random.Random(1)
    for number in range(24):
        prompt = tuple(chance.randrange(97) for _ in range(chance.randint(1, 40)))
        engine.submit(sequence(prompt, name=str(number), **{**ASKED[number % len(ASKED)], "max_tokens": 12}))
    engine.settle()
    assert scheduler.preemptions > 0
    assert torch.equal(leader._tables.tokens, mirror._tables.tokens)


def test_a_decode_step_is_a_few_bytes_a_row() -> None:
    scheduler = Scheduler(BlockPool(1000, 16), max_sequences=64, max_batched_tokens=8192)
    for number in range(64):
        scheduler.add(sequence((number,) * 40, name=str(number)))
    orders = Orders()
    first = orders.encode(scheduler.schedule())
    for waiting in scheduler.running:
        waiting.append(1)
    second = orders.encode(scheduler.schedule())
    assert len(second) <= 20 + 64 * 16
    assert len(first) > 64 * 40 * 4


def test_a_message_that_does_not_follow_is_refused() -> None:
    scheduler = Scheduler(BlockPool(10, 4), max_sequences=2, max_batched_tokens=64)
    scheduler.add(sequence((1, 2, 3), max_tokens=8))
    orders = Orders()
    first = orders.encode(scheduler.schedule())
    scheduler.running[0].append(1)
    second = orders.encode(scheduler.schedule())
    with pytest.raises(OutOfStep, match="makes no sense"):
        Mirror().apply(second)
    for message in (first[:-1], first + b"x", b"", b"\xff" * 64):
        with pytest.raises(OutOfStep, match=f"a step of {len(message)} bytes makes no sense"):
            Mirror().apply(message)
