"""The runner's ways of computing a step say the same: graphs or not, tokens read at once or a step late,
alone or together."""

from __future__ import annotations

import pytest
import torch
from tests.unit.worker.decoding import paged, sequence
from tests.unit.worker.test_models import saved

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.graphs import DecodeGraphs, PromptGraphs, Repeater, Work
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import FinishReason, Sequence, TokenEvent
from plimsoll_worker.engine.staging import TURNS, Staging
from plimsoll_worker.launch import Precision, graph_sizes, prompt_graph_sizes
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder

PROMPTS: tuple[tuple[int, ...], ...] = ((5, 6, 7), (8,) * 9, tuple(range(20)), (50, 60), (11, 12, 13, 14, 15))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("small")
    saved("Llama", {}, folder)
    return load_model(open_checkpoint(folder), device=CPU, precision=Precision.FP32)


@pytest.fixture(params=["at once", "graphs, a step late"])
def runner(request: pytest.FixtureRequest, model: Decoder) -> ModelRunner:
    made = paged(model, blocks=60, block_size=4)
    made.steps_ahead = int("late" in request.param)
    if "graphs" in request.param:
        made.capture(Repeater())
    return made


def generate(
    runner: ModelRunner, sequences: list[Sequence], *, blocks: int = 60, budget: int = 64
) -> tuple[list[list[int]], list[list[TokenEvent]], Scheduler]:
    scheduler = Scheduler(
        BlockPool(blocks, runner.cache.block_size),
        max_sequences=runner.max_sequences,
        max_batched_tokens=budget,
    )
    engine = Engine(runner, scheduler)
    told: list[list[TokenEvent]] = []
    for each in sequences:
        events: list[TokenEvent] = []
        told.append(events)
        each.emit = events.append
        engine.submit(each)
    engine.drain(60)
    engine.run()
    scheduler.check_integrity()
    return [list(each.generated) for each in sequences], told, scheduler


def ask(**params: object) -> list[Sequence]:
    made = [
        sequence(prompt, name=str(number), **{"max_tokens": 10, **params})
        for number, prompt in enumerate(PROMPTS)
    ]
    for number, each in enumerate(made):
        each.seed = number
    return made


ASKED: dict[str, dict[str, object]] = {
    "greedy": {},
    "temperature": {"temperature": 0.9},
    "top-p": {"temperature": 1.2, "top_p": 0.8, "top_k": 20},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    "bias": {"logit_bias": {3: 4.0, 7: -100.0}},
    "logprobs": {"logprobs": 3, "temperature": 0.5},
}


@pytest.fixture(scope="module", params=ASKED.values(), ids=ASKED.keys())
def asked(request: pytest.FixtureRequest, model: Decoder) -> tuple[dict[str, object], list[list[int]]]:
    """What is asked for, and the answers when each prompt is alone."""
    simple = paged(model, blocks=60, block_size=4)
    return request.param, [generate(simple, [one])[0][0] for one in ask(**request.param)]


def test_answers_depend_on_nothing_but_the_request(
    runner: ModelRunner, asked: tuple[dict[str, object], list[list[int]]]
) -> None:
    params, alone = asked
    together, told, _ = generate(runner, ask(**params))
    assert together == alone
    assert [[event.token for event in events] for events in told] == alone
    chunked, _, _ = generate(runner, ask(**params), budget=7)
    assert chunked == alone
    cramped, _, scheduler = generate(runner, ask(**params), blocks=9)
    assert cramped == alone
    assert scheduler.preemptions > 0
    for events in told:
        assert all((event.logprobs is not None) == ("logprobs" in params) for event in events)


def test_logprobs_come_with_their_own_token(runner: ModelRunner) -> None:
    _, told, _ = generate(runner, ask(logprobs=4))
    for events in told:
        for event in events:
            assert event.logprobs is not None
            assert len(event.logprobs.top) == 4
            assert event.logprobs.top[0] == (event.token, event.logprobs.chosen)  # greedy: the likeliest


def test_a_stop_token_ends_an_answer_exactly(runner: ModelRunner) -> None:
    free, _, _ = generate(runner, ask())
    stops = frozenset({free[0][4], free[2][6]})
    stopped, told, _ = generate(runner, ask(stop_token_ids=stops))
    for whole, cut, events in zip(free, stopped, told, strict=True):
        end = next((at for at, token in enumerate(whole) if token in stops), None)
        assert cut == (whole if end is None else whole[: end + 1])
        assert events[-1].finish is (FinishReason.LENGTH if end is None else FinishReason.STOP)
        assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)


def test_prefixes_from_the_cache_change_no_answer(runner: ModelRunner) -> None:
    scheduler = Scheduler(BlockPool(60, 4), max_sequences=8, max_batched_tokens=64)
    common = tuple(range(30, 60))
    answers = []
    for _ in range(2):
        engine = Engine(runner, scheduler)
        asked = [sequence((*common, last), name=str(last), max_tokens=6) for last in range(4)]
        for each in asked:
            engine.submit(each)
        engine.drain(60)
        engine.run()
        answers.append([list(each.generated) for each in asked])
    assert [each.cached_tokens for each in asked] == [28] * 4
    assert answers[0] == answers[1]


def test_a_rehearsal_runs_every_option_and_disturbs_nothing(runner: ModelRunner) -> None:
    before, _, _ = generate(runner, ask())
    runner.rehearse()
    after, _, _ = generate(runner, ask())
    assert after == before


class Counting:
    """A recorder that notes which recordings are replayed."""

    def __init__(self) -> None:
        self.made = 0
        self.replayed: list[int] = []

    def record(self, work: Work) -> Work:
        number = self.made
        self.made += 1

        def replay() -> None:
            self.replayed.append(number)
            work()

        return replay


def test_short_steps_are_replayed_and_only_plain_sampling_of_decoding_with_them(model: Decoder) -> None:
    runner = paged(model, blocks=60, block_size=4)
    recorder = Counting()
    runner.capture(recorder)
    prompts = list(reversed(prompt_graph_sizes(runner.max_batched_tokens)))
    sizes = list(reversed(graph_sizes(8)))
    assert recorder.made == len(prompts) + 2 * len(sizes)
    prompt, eight = prompts.index(64), len(prompts) + 2 * sizes.index(8)
    generate(runner, ask(max_tokens=5))
    assert recorder.replayed == [prompt, *[eight, eight + 1] * 4]
    recorder.replayed.clear()
    generate(runner, ask(max_tokens=5, logprobs=1))
    assert recorder.replayed == [prompt, *[eight] * 4]


def test_a_step_with_prompts_is_padded_to_what_holds_its_tokens_and_its_sequences() -> None:
    assert prompt_graph_sizes(50) == ()
    assert prompt_graph_sizes(256) == (64, 128, 192, 256)
    graphs = PromptGraphs(prompt_graph_sizes(8192), max_sequences=40)
    cases = {(1, 1): 64, (64, 16): 64, (65, 1): 128, (64, 17): 128, (130, 40): 192, (512, 40): 512}
    assert {asked: graphs.bucket(*asked) for asked in cases} == cases
    assert graphs.bucket(513, 1) is None
    assert graphs.bucket(64, 41) is None


def test_buckets_cover_every_batch() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(6) == (1, 2, 4, 6)
    assert graph_sizes(8) == (1, 2, 4, 8)
    assert graph_sizes(64)[-3:] == (48, 56, 64)
    assert graph_sizes(100)[-4:] == (64, 80, 96, 100)
    assert graph_sizes(30) == (1, 2, 4, 8, 16, 24, 30)
    graphs = DecodeGraphs(graph_sizes(30))
    assert [graphs.bucket(count) for count in (1, 3, 5, 24, 25, 30, 31)] == [1, 4, 8, 24, 30, 30, None]


def test_staged_arrays_arrive_aligned_and_in_place() -> None:
    staging = Staging(CPU, 64)
    places = []
    for turn in range(TURNS + 2):
        staging.begin()
        first = staging.put([turn, 2, 3], torch.int32)
        second = staging.put([float(turn)], torch.float32)
        third = staging.put([-(2**62) + turn], torch.int64)
        staging.send()
        assert first.tolist() == [turn, 2, 3]
        assert second.tolist() == [float(turn)]
        assert third.tolist() == [-(2**62) + turn]
        places.append([part.data_ptr() % 16 for part in (first, second, third)])
        places.append([part.data_ptr() for part in (first, second, third)])
    assert places[0] == [places[0][0]] * 3
    assert places[1::2] == [places[1]] * (TURNS + 2)
