"""Whatever is asked and whoever goes away: every block is accounted for, and what is shared is what was
computed."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.worker.decoding import sequence

from plimsoll_worker.engine.block_pool import BlockPool, block_hash, root_hash
from plimsoll_worker.engine.scheduler import Scheduled, Scheduler
from plimsoll_worker.engine.sequence import Sequence


class Pretender:
    """The engine's loop without a model. Tokens are read `ahead` steps late, as from a GPU; the token at a
    place follows from all before it, so that a cached block must hold what would have been computed."""

    def __init__(self, scheduler: Scheduler, ahead: int) -> None:
        self.scheduler = scheduler
        self.ahead = ahead
        self.flights: deque[list[Scheduled]] = deque()
        self.live: dict[str, Sequence] = {}
        self.cache: dict[int, tuple[int, ...]] = {}
        self.ended = 0

    def add(self, new: Sequence) -> None:
        self.live[new.id] = new
        self.scheduler.add(new)

    def abort(self, name: str) -> None:
        self.scheduler.remove(self.live.pop(name))

    def step(self) -> int:
        step = self.scheduler.schedule()
        assert sum(part.count for part in step) <= self.scheduler.max_batched_tokens
        for part in step:
            assert part.count > 0
            self._write(part)
        if step:
            self.flights.append(step)
        while len(self.flights) > (self.ahead if step else 0):
            for part in self.flights.popleft():
                if part.completes and part.sequence.id in self.live:
                    self._read(part.sequence)
        return len(step)

    def _write(self, part: Scheduled) -> None:
        size = self.scheduler.pool.block_size
        tokens = part.sequence.tokens
        for index, block in enumerate(part.sequence.block_table):
            if index * size < part.start:  # found in the cache, or computed before
                before = tuple(tokens[: min(part.start, (index + 1) * size)])
                assert self.cache[block][: len(before)] == before[: len(self.cache[block])]
            if index * size < part.start + part.count:
                self.cache[block] = tuple(tokens[: (index + 1) * size])

    def _read(self, current: Sequence) -> None:
        token = hash(tuple(current.tokens)) % 5
        if current.append(token) is None:
            self.scheduler.publish(current)
        else:
            self.abort(current.id)
            self.ended += 1


class Books(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(10, 24), budget=st.integers(1, 30), most=st.integers(1, 5), ahead=st.integers(0, 2)
    )
    def begin(self, blocks: int, budget: int, most: int, ahead: int) -> None:
        pool = BlockPool(blocks, 4)
        self.loop = Pretender(Scheduler(pool, max_sequences=most, max_batched_tokens=budget), ahead)
        self.count = 0

    @rule(
        prompt=st.integers(1, 24), answer=st.integers(1, 16), kind=st.integers(0, 1), rank=st.integers(-1, 1)
    )
    def add(self, prompt: int, answer: int, kind: int, rank: int) -> None:
        self.count += 1
        new = sequence(tuple([kind] * prompt), name=str(self.count), max_tokens=answer)
        new.priority = rank
        self.loop.add(new)

    @precondition(lambda self: self.loop.live)
    @rule(which=st.integers(0, 10**6))
    def abort(self, which: int) -> None:
        names = list(self.loop.live)
        self.loop.abort(names[which % len(names)])

    @rule()
    def step(self) -> None:
        self.loop.step()

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "loop"):
            self.loop.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for _ in range(5000):
            if not self.loop.live:
                break
            self.loop.step()
        assert not self.loop.live
        assert self.loop.scheduler.pool.used == 0
        self.loop.scheduler.check_integrity()


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_ten_thousand_requests_and_their_aborts_leave_no_block_behind() -> None:
    random_ = random.Random(7)
    loop = Pretender(Scheduler(BlockPool(90, 16), max_sequences=32, max_batched_tokens=256), ahead=1)
    systems = [tuple(random_.randrange(5) for _ in range(48)) for _ in range(4)]
    for number in range(10_000):
        own = tuple(random_.randrange(5) for _ in range(random_.randrange(1, 60)))
        new = sequence(random_.choice(systems) + own, name=str(number), max_tokens=random_.randrange(1, 24))
        new.priority = random_.randrange(3)
        loop.add(new)
        if random_.random() < 0.3:
            loop.abort(random_.choice(list(loop.live)))
        while len(loop.live) > 40:
            loop.step()
        if number % 500 == 0:
            loop.scheduler.check_integrity()
    while loop.live or loop.flights:
        loop.step()
    scheduler = loop.scheduler
    scheduler.check_integrity()
    assert scheduler.pool.used == 0
    assert loop.ended > 6_000
    assert scheduler.preemptions > 0
    assert scheduler.prefix_hits > 0.3 * scheduler.prefix_queries


def run_alone(loop: Pretender, prompt: tuple[int, ...], salt: str = "", **params: object) -> Sequence:
    new = sequence(prompt, name="only", **params)
    salted = Sequence(id=new.id, prompt=prompt, params=new.params, emit=new.emit, cache_salt=salt)
    loop.add(salted)
    while loop.live:
        loop.step()
    return salted


def test_a_prompt_that_was_there_before_is_found_up_to_its_last_whole_block() -> None:
    loop = Pretender(Scheduler(BlockPool(50, 4), max_sequences=2, max_batched_tokens=100), ahead=0)
    prompt = tuple(range(16))
    assert run_alone(loop, prompt, max_tokens=3).cached_tokens == 0
    # One token must be computed for its logits, so the last of four whole blocks is computed again.
    assert run_alone(loop, prompt, max_tokens=3).cached_tokens == 12
    assert run_alone(loop, (*prompt, 1, 2), max_tokens=3).cached_tokens == 16
    assert run_alone(loop, (9, *prompt), max_tokens=3).cached_tokens == 0
    assert (loop.scheduler.prefix_queries, loop.scheduler.prefix_hits) == (16 + 16 + 18 + 17, 12 + 16)


def test_an_answer_is_found_as_part_of_the_next_prompt() -> None:
    loop = Pretender(Scheduler(BlockPool(50, 4), max_sequences=2, max_batched_tokens=100), ahead=0)
    first = run_alone(loop, (1, 2, 3), max_tokens=10)
    # The last token was sampled, never computed.
    assert run_alone(loop, (*first.tokens, 5), max_tokens=1).cached_tokens == 12


def test_salts_keep_tenants_apart() -> None:
    loop = Pretender(Scheduler(BlockPool(50, 4), max_sequences=2, max_batched_tokens=100), ahead=0)
    prompt = tuple(range(20))
    run_alone(loop, prompt, salt="a", max_tokens=1)
    assert run_alone(loop, prompt, salt="b", max_tokens=1).cached_tokens == 0
    assert run_alone(loop, prompt, salt="a", max_tokens=1).cached_tokens == 16


def test_sequences_of_one_step_share_what_the_first_computes() -> None:
    scheduler = Scheduler(BlockPool(20, 4), max_sequences=4, max_batched_tokens=100)
    for name in "abc":
        scheduler.add(sequence(tuple(range(14)), name=name))
    assert [(part.sequence.id, part.start, part.count) for part in scheduler.schedule()] == [
        ("a", 0, 14),
        ("b", 12, 2),
        ("c", 12, 2),
    ]
    assert scheduler.pool.used == 3 + 3
    scheduler.check_integrity()


def test_a_block_that_single_tokens_fill_is_shared_from_the_next_step_on() -> None:
    """Keys of a step of single tokens are written by the kernel that reads the cache: what one sequence's
    program writes there, another's must not wait for."""
    scheduler = Scheduler(BlockPool(20, 4), max_sequences=4, max_batched_tokens=100)
    first = sequence(tuple(range(7)), name="first")
    scheduler.add(first)
    scheduler.schedule()
    first.append(7)
    for name in ("same step", "next step"):
        scheduler.add(sequence((*range(8), 9), name=name))
        step = scheduler.schedule()
        assert (step[0].sequence, step[0].count) == (first, 1)
        found = {"same step": (4, 5), "next step": (8, 1)}[name]
        assert [(part.start, part.count) for part in step if part.sequence.id == name] == [found]
        first.append(8)
        scheduler.publish(first)
    scheduler.check_integrity()


def test_the_longest_unused_blocks_are_forgotten_first() -> None:
    loop = Pretender(Scheduler(BlockPool(8, 4), max_sequences=1, max_batched_tokens=100), ahead=0)
    old, new = tuple(range(9)), tuple(range(20, 29))
    run_alone(loop, old, max_tokens=1)
    run_alone(loop, new, max_tokens=1)
    run_alone(loop, tuple(range(40, 58)), max_tokens=1)
    assert run_alone(loop, new, max_tokens=1).cached_tokens == 8
    assert run_alone(loop, old, max_tokens=1).cached_tokens < 8


def test_the_more_urgent_goes_first_and_the_less_urgent_gives_way() -> None:
    scheduler = Scheduler(BlockPool(6, 4), max_sequences=2, max_batched_tokens=100)
    lazy = sequence((1,) * 9, name="lazy", max_tokens=12)
    urgent = sequence((2,) * 9, name="urgent", max_tokens=12)
    lazy.priority, urgent.priority = 1, 0
    loop = Pretender(scheduler, ahead=0)
    loop.add(lazy)
    loop.add(urgent)
    assert [waiting.id for waiting in scheduler.waiting] == ["urgent", "lazy"]
    while not scheduler.preemptions:
        loop.step()
    assert [waiting.id for waiting in scheduler.waiting] == ["lazy"]


def test_a_preempted_sequence_waits_for_its_token_in_flight() -> None:
    scheduler = Scheduler(BlockPool(6, 4), max_sequences=2, max_batched_tokens=100)
    loop = Pretender(scheduler, ahead=1)
    for number in range(2):
        loop.add(sequence((number,) * 9, name=str(number), max_tokens=14))
    while loop.live or loop.flights:
        loop.step()
        scheduler.check_integrity()
    assert scheduler.preemptions > 0
    assert loop.ended == 2


def test_a_block_held_twice_is_found() -> None:
    pool = BlockPool(4, 16)
    table: list[int] = []
    pool.grow(table, 20)
    pool.check_integrity([table])
    with pytest.raises(AssertionError, match=f"block {table[0]} is held 2 times, counted are 1"):
        pool.check_integrity([table, table[:1]])
    with pytest.raises(AssertionError, match="held 0 times"):
        pool.check_integrity([])


def test_hashes_tell_tokens_order_and_place_apart() -> None:
    root = root_hash("")
    names = {
        block_hash(root, (1, 2)),
        block_hash(root, (2, 1)),
        block_hash(block_hash(root, (1, 2)), (1, 2)),
        block_hash(root_hash("salt"), (1, 2)),
    }
    assert len(names) == 4
