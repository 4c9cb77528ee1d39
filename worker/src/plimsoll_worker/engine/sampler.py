"""Chooses a token from logits.

Each sequence draws from a generator of its own, so that a seed gives the same answer whatever else is in the
batch.
"""

from __future__ import annotations

import torch

from plimsoll_worker.engine.sequence import Sequence

GREEDY_BELOW = 1e-5
"""Temperatures below are greedy: dividing by them only overflows."""


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """The next token of each sequence from its row of logits (sequences, vocabulary)."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, sequence in enumerate(sequences):
        if sequence.params.temperature >= GREEDY_BELOW:
            tokens[row] = _draw(logits[row].float().cpu(), sequence)
    return tokens


def _draw(logits: torch.Tensor, sequence: Sequence) -> int:
    params = sequence.params
    scaled = logits / params.temperature
    if 0 < params.top_k < scaled.shape[0]:
        scaled = scaled.masked_fill(scaled < scaled.topk(params.top_k).values[-1], -torch.inf)
    if params.top_p < 1.0:
        scaled = _nucleus(scaled, params.top_p)
    probabilities = torch.softmax(scaled, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=sequence.generator))


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to `top_p` (Holtzman et al. 2019,
    arXiv:1904.09751)."""
    ordered, order = logits.sort(descending=True)
    before = torch.softmax(ordered, dim=-1).cumsum(dim=-1).roll(1)
    before[0] = 0.0
    return logits.masked_fill(
        torch.zeros_like(logits, dtype=torch.bool).scatter(0, order, before >= top_p), -torch.inf
    )
