"""A model over several stages says what it says on one: whatever the cut, the batches and what happens
meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.worker.parallel.stages import stage_launches

from plimsoll_worker.engine import sequence as sequences
from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import SamplingParams, TokenEvent, TokenLogprobs
from plimsoll_worker.launch import LayerRange, Precision
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.random_weights import RandomCheckpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.parallel.leading import Leading
from plimsoll_worker.parallel.pipeline import Pipeline, decode_answer, encode_answer
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.parallel.rendezvous import meet

CPU = torch.device("cpu")
BLOCK = 4
LAYERS = 6
CUTS = {"one": (6,), "two": (3, 3), "uneven": (4, 2), "four": (1, 2, 2, 1)}
SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
}
PROMPTS: tuple[tuple[int, ...], ...] = ((5, 6, 7), (8,) * 9, tuple(range(1, 41)), (50, 60), (11, 12, 13, 14))
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalties, filters and log probabilities": {
        "temperature": 0.8,
        "seed": 3,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "logprobs": 2,
    },
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("model")
    (made / "config.json").write_text(json.dumps({**SHAPE, "tie_word_embeddings": request.param}))
    return made


def runner_of(folder: Path, layers: LayerRange, stage: int, stages: int, blocks: int) -> ModelRunner:
    position = Position(first=layers.first, last=layers.last, stage=stage, stages=stages)
    model = load_model(RandomCheckpoint(folder), device=CPU, precision=Precision.FP32, position=position)
    cache = KVCache(model.share, blocks=blocks, block_size=BLOCK, dtype=torch.float32, device=CPU)
    return ModelRunner(model, cache, max_sequences=8, max_batched_tokens=64, max_context_tokens=64)


class Replica:
    """All stages in threads of this process; the first one's engine is the caller's."""

    def __init__(self, folder: Path, cut: Sequence[int], *, blocks: int = 80, budget: int = 64) -> None:
        stages = len(cut)
        launches = stage_launches(folder, cut) if stages > 1 else []
        ranges = [launch.layers for launch in launches] or [LayerRange(first=0, last=LAYERS)]
        runners = [runner_of(folder, held, stage, stages, blocks) for stage, held in enumerate(ranges)]
        self.lost: list[str] = []
        self.leaving = threading.Event()
        with ThreadPoolExecutor(max(1, stages)) as threads:
            lines = list(threads.map(meet, launches))
        self.ends = [Pipeline(found, self.lost.append, self.leaving.set) for found in lines]
        for end, runner in zip(self.ends, runners, strict=bool(self.ends)):
            end.join(runner)
        self._threads = [
            threading.Thread(target=end.follow, args=(runner,))
            for end, runner in zip(self.ends[1:], runners[1:], strict=False)
        ]
        for thread in self._threads:
            thread.start()
        self.scheduler = Scheduler(
            BlockPool(blocks, BLOCK), max_sequences=8, max_batched_tokens=budget, stages=stages
        )
        first = runners[0]
        self.engine = Engine(
            self.ends[0].awaiting(Leading(first, self.ends[0].order)) if self.ends else first, self.scheduler
        )

    def close(self) -> None:
        for end in self.ends[:1]:
            end.close()
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "a stage did not hear the farewell"
        for end in self.ends[1:]:
            end.close()


@contextmanager
def replica(*args: Any, **kwargs: Any) -> Iterator[Replica]:
    made = Replica(*args, **kwargs)
    try:
        yield made
    finally:
        made.close()
    assert not made.lost


Told = list[tuple[int | None, TokenLogprobs | None]]


def answers(made: Replica, params: dict[str, Any], tokens: int = 20) -> list[Told]:
    told: list[Told] = []
    for index, prompt in enumerate(PROMPTS):
        events: Told = []
        told.append(events)

        def emit(event: TokenEvent, events: Told = events) -> None:
            events.append((event.token, event.logprobs))

        settings = SamplingParams(max_tokens=tokens, **params)
        made.engine.submit(sequences.Sequence(id=str(index), prompt=prompt, params=settings, emit=emit))
    made.engine.settle()
    made.scheduler.check_integrity()
    return told


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_every_cut_gives_the_same_answers(folder: Path, asked: dict[str, Any]) -> None:
    found = {}
    for name, cut in CUTS.items():
        with replica(folder, cut) as made:
            found[name] = answers(made, asked)
    tokens = {name: [[token for token, _ in told] for told in each] for name, each in found.items()}
    assert all(each == tokens["one"] for each in tokens.values()), tokens
    for each in found.values():
        for told, expected in zip(each, found["one"], strict=True):
            for (_, logprobs), (_, wanted) in zip(told, expected, strict=True):
                assert (logprobs is None) == (wanted is None)
                if logprobs and wanted:
                    assert logprobs.chosen == pytest.approx(wanted.chosen, abs=1e-4)


@pytest.mark.parametrize("cut", ["two", "four"])
@pytest.mark.parametrize(
    "tight", [{"budget": 7}, {"blocks": 22}], ids=["prompts in chunks", "blocks for half of them"]
)
def test_chunks_and_preemption_change_no_answer(folder: Path, cut: str, tight: dict[str, int]) -> None:
    with replica(folder, CUTS["one"]) as whole:
        expected = answers(whole, ASKED["seeded"])
    with replica(folder, CUTS[cut], **tight) as made:
        assert answers(made, ASKED["seeded"]) == expected
        assert (made.scheduler.preemptions > 0) == ("blocks" in tight)


def test_an_abort_frees_its_blocks_and_changes_no_other_answer(folder: Path) -> None:
    with replica(folder, CUTS["one"]) as whole:
        expected = answers(whole, ASKED["greedy"])
    with replica(folder, CUTS["two"]) as made:
        ended: list[TokenEvent] = []

        def leave(event: TokenEvent) -> None:
            ended.append(event)
            if len(ended) == 3:
                made.engine.abort("left")

        settings = SamplingParams(max_tokens=20, temperature=0.0)
        made.engine.submit(sequences.Sequence(id="left", prompt=(3, 4, 5), params=settings, emit=leave))
        assert answers(made, ASKED["greedy"]) == expected
        assert ended[-1].finish is sequences.FinishReason.ABORTED
        assert made.scheduler.pool.used == 0


def test_as_many_steps_are_in_flight_as_there_are_stages(folder: Path) -> None:
    with replica(folder, CUTS["two"]) as made:
        shares: list[int] = []
        launch = made.engine._runner.launch

        def counting(step: Any) -> Any:
            shares.append(len(step))
            return launch(step)

        made.engine._runner.launch = counting  # type: ignore[method-assign]
        answers(made, ASKED["greedy"])
        assert made.engine._runner.steps_ahead == 1
        decoding = shares[4:-8]
        assert decoding
        assert max(decoding) <= 3, "five sequences are shared by two steps"


def test_stages_agree_on_the_smallest_pool(folder: Path) -> None:
    with replica(folder, CUTS["four"]) as made, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda end, n: end.least(n), made.ends, (50, 31, 77, 40))) == [31] * 4


def test_a_stage_that_is_told_to_end_tells_the_first(folder: Path) -> None:
    with replica(folder, CUTS["two"]) as made:
        made.ends[1].leave()
        assert made.leaving.wait(10)


def test_log_probabilities_cross_whole() -> None:
    answer = [(5, None), (7, TokenLogprobs(-0.5, ((7, -0.5), (3, -1.25)))), (9, TokenLogprobs(-2.0, ()))]
    assert decode_answer(encode_answer(answer)) == answer
