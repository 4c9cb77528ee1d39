"""The draw and the penalties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plimsoll_worker.kernels import reference, sampling


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Temperatures (the first greedy), seeds of all 64 bits, positions."""
    seeds = torch.randint(-(2**62), 2**62, (count,))
    return torch.linspace(0, 3, count), seeds, torch.randint(0, 100_000, (count,))


def test_kernel_and_reference_draw_the_same_tokens() -> None:
    logits = torch.randn(6, 5000)
    logits[:, 100:4000] = -torch.inf
    knobs = rows(6)
    tokens = sampling.sample(logits, *knobs)
    assert tokens.tolist() == reference.sample(logits, *knobs).tolist()
    assert tokens[0] == logits[0].argmax()


def test_of_equal_logits_the_greedy_choice_is_the_first() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, [1234, 3000]] = 1.0
    zero = torch.zeros(1, dtype=torch.int64)
    assert sampling.sample(logits, torch.zeros(1), zero, zero).tolist() == [1234]


def test_a_row_draws_the_same_in_any_batch() -> None:
    logits = torch.randn(6, 3000)
    knobs = rows(6)
    together = sampling.sample(logits, *knobs)
    order = torch.tensor([5, 2, 3])
    apart = sampling.sample(logits[order], *(part[order] for part in knobs))
    assert apart.tolist() == together[order].tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    draws = 20_000
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(draws, 4)
    seeds, positions = torch.arange(draws) // 100 * 77, torch.arange(draws) % 100
    tokens = reference.sample(logits, torch.full((draws,), 2.0), seeds, positions)
    share = torch.bincount(tokens, minlength=4) / draws
    assert torch.allclose(share, torch.softmax(logits[0] / 2, dim=0), atol=0.012)


def test_penalties() -> None:
    logits = torch.randn(3, 2500)
    slots = torch.tensor([4, 0, 2])
    prompt = (torch.rand(5, 2500) < 0.2).to(torch.uint8)
    counts = torch.randint(0, 3, (5, 2500), dtype=torch.int32)
    knobs = [torch.tensor([1.0, 1.3, 0.8]), torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0.0, 0.0, -0.4])]
    wanted, before = logits.double(), logits[0].clone()
    reference.penalize(wanted, slots, prompt, counts, *knobs)
    sampling.penalize(logits, slots, prompt, counts, *knobs)
    assert torch.allclose(logits.double(), wanted, atol=1e-6)
    assert torch.equal(logits[0], before), "a row without penalties stays as it is"
