"""What SamplingParams promises, on rows of made-up logits."""

from __future__ import annotations

import pytest
import torch
from tests.unit.worker.decoding import sequence

from plimsoll_worker.engine.sampler import Chosen, Noise, Sampler, sampling_position, temperature_of
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.sequence import Sequence

PROBABILITIES = torch.tensor([0.4, 0.3, 0.2, 0.1])


def tokens_of(rows: list[Scheduled]) -> torch.Tensor:
    """Behind a sequence's end stands the token 0, which must not count."""
    longest = max(part.start + part.count for part in rows)
    known = [part.sequence.tokens[: part.start + part.count] for part in rows]
    return torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in known])


def ends(*sequences: Sequence) -> list[Scheduled]:
    return [Scheduled(one, len(one.tokens) - 1, 1, completes=True) for one in sequences]


def sampler(logits: torch.Tensor, rows: list[Scheduled]) -> Chosen:
    sequences = [part.sequence for part in rows]
    noise = Noise(
        torch.tensor([temperature_of(each.params) for each in sequences]),
        torch.tensor([each.seed for each in sequences]),
        torch.tensor([sampling_position(part) for part in rows]),
    )
    return Sampler(torch.device("cpu"), tokens_of)(logits, rows, noise)  # type: ignore[arg-type]


def draws(logits: torch.Tensor, count: int = 400, **params: object) -> torch.Tensor:
    rows = [sequence((1,), **{"temperature": 1.0, "seed": seed, **params}) for seed in range(count)]
    return sampler(logits.expand(count, -1), ends(*rows)).tokens


def choose(logits: torch.Tensor, *rows: Sequence) -> list[int]:
    return sampler(logits, ends(*rows)).tokens.tolist()


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.69}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 1e-6}, {0}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
        ({"min_p": 0.45}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.45, "top_k": 2}, {0, 1}),
        ({"temperature": 0.25, "min_p": 0.2}, {0, 1}),
    ],
    ids=str,
)
def test_only_what_is_likely_enough_is_drawn(params: dict[str, object], kept: set[int]) -> None:
    assert set(draws(PROBABILITIES.log(), **params).tolist()) == kept


def test_temperature_0_is_greedy() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert choose(logits, sequence((1,), temperature=0.0)) == [1]
    assert choose(logits, sequence((1,), temperature=0.0, top_p=0.1, top_k=1)) == [1]


def test_draws_follow_the_probabilities_that_temperature_makes() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    counts = draws(logits, 3000, temperature=0.5).bincount(minlength=3)
    torch.testing.assert_close(counts / 3000, torch.softmax(logits / 0.5, 0), atol=0.03, rtol=0)


def test_a_seed_draws_the_same_tokens_in_any_company() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    first, second = [], []
    for length in range(1, 11):
        mine = sequence((1,) * length, temperature=1.0, seed=3)
        others = [sequence((1,), temperature=0.7, seed=seed, top_k=seed) for seed in range(4)]
        first += choose(logits[:1], mine)
        together = choose(logits[[1, 2, 0, 3, 4]], others[0], others[1], mine, *others[2:])
        second.append(together[2])
    assert first == second
    assert len(set(first)) > 1


def test_bias_is_added_and_may_forbid() -> None:
    logits = torch.zeros(2, 4)
    rows = [
        sequence((1,), temperature=0.0, logit_bias={2: 1.0}),
        sequence((1,), temperature=0.0, logit_bias={0: -100.0, 3: 100.0}),
    ]
    assert choose(logits, *rows) == [2, 3]
    assert 1 not in draws(torch.zeros(4), logit_bias={1: -100.0}).tolist()


def test_no_stop_token_before_min_tokens() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": frozenset({1})}
    growing = sequence((0,), **params)
    for expected in (2, 2, 1):
        assert choose(logits, growing) == [expected]
        growing.append(expected)


def test_penalties_count_the_prompt_or_the_answer_as_the_api_says() -> None:
    logits = torch.tensor([[2.0, 1.9, 1.5, -1.0, 0.0]] * 4)

    def row(**params: object) -> Sequence:
        started = sequence((0, 3), temperature=0.0, **params)
        for token in (1, 1):
            started.append(token)
        return started

    rows = ends(
        row(),
        row(repetition_penalty=2.0),  # 0: 1.0, 1: 0.95, 3: -2
        row(presence_penalty=0.5, logit_bias={0: -1.0}),  # 0: 1.0, 1: 1.4
        row(frequency_penalty=-0.1),  # 1: 2.1
    )
    assert sampler(logits, rows).tokens.tolist() == [0, 2, 2, 1]


def test_logprobs_are_the_models_own_and_only_for_who_asks() -> None:
    logits = torch.stack([PROBABILITIES.log()] * 3)
    rows = ends(
        sequence((1,), temperature=0.0),
        sequence((1,), temperature=0.0, logprobs=2, logit_bias={3: 50.0}),
        sequence((1,), temperature=0.0, logprobs=0),
    )
    chosen = sampler(logits, rows)
    assert chosen.tokens.tolist() == [0, 3, 0]
    assert chosen.logprobs.keys() == {1, 2}
    own, values, tokens = chosen.logprobs[1]
    torch.testing.assert_close(own.exp(), torch.tensor(0.1))
    torch.testing.assert_close(values.exp(), torch.tensor([0.4, 0.3]))
    assert tokens.tolist() == [0, 1]
    assert chosen.logprobs[2][1].numel() == 0
