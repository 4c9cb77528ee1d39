"""Tensor parallel: any number of ranks that divides a model answers as one does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.unit.worker.decoding import paged, sequence, steps
from tests.unit.worker.parallel.test_shares import DIVISIBLE, positions, sizes
from tests.unit.worker.parallel.threads import ThreadRank, side_by_side
from tests.unit.worker.test_models import CASES, saved

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import Checkpoint, open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.parallel.ranks import Ranks

CPU = torch.device("cpu")
PROMPTS = ((3, 5, 7, 11, 13, 17, 19, 23, 29, 31), (2, 4, 8), (96,) * 17)


def model_of(checkpoint: Checkpoint, position: Position | None = None, ranks: Ranks | None = None) -> Decoder:
    model = load_model(checkpoint, device=CPU, precision=Precision.FP32, position=position)
    if ranks is not None:
        model.ranks = ranks
    return model


def greedy(
    model: Decoder, prompts: tuple[tuple[int, ...], ...], length: int
) -> tuple[list[int], torch.Tensor]:
    """The likeliest tokens of all answers in the order of their steps, and the logits of each."""
    sequences = [sequence(prompt, name=str(index), max_tokens=length) for index, prompt in enumerate(prompts)]
    tokens, logits = [], []
    for waiting, row in steps(paged(model, blocks=64), sequences, max_batched_tokens=12):
        tokens.append(int(row.argmax()))
        logits.append(row)
        waiting.append(tokens[-1])
    return tokens, torch.stack(logits)


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES.keys())
def test_every_family_answers_alike(kind: str, changes: Mapping[str, object], tmp_path: Path) -> None:
    saved(kind, {**changes, **DIVISIBLE}, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    expected, logits = greedy(model_of(checkpoint), PROMPTS, 6)
    count = sizes(checkpoint.config)[0]
    places = positions(checkpoint.config, 1, count)

    def answer(ranks: ThreadRank, rank: int) -> tuple[list[int], torch.Tensor]:
        return greedy(model_of(checkpoint, places[rank], ranks), PROMPTS, 6)

    for tokens, mine in side_by_side(count, answer):
        assert tokens == expected
        torch.testing.assert_close(mine, logits, rtol=1e-4, atol=1e-4)


def test_smollm2_with_its_nine_heads_answers_alike_on_three(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    prompts = (tuple(range(100, 140)), (1, 2, 3))
    expected, logits = greedy(model_of(checkpoint), prompts, 4)
    places = positions(checkpoint.config, 1, 3)

    def answer(ranks: ThreadRank, rank: int) -> tuple[list[int], torch.Tensor]:
        return greedy(model_of(checkpoint, places[rank], ranks), prompts, 4)

    for tokens, mine in side_by_side(3, answer):
        assert tokens == expected
        torch.testing.assert_close(mine, logits, rtol=1e-3, atol=1e-3)


def test_sampling_is_the_first_ranks_and_arrives_on_all(tmp_path: Path) -> None:
    saved("Llama", DIVISIBLE, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    places = positions(checkpoint.config, 1, 2)
    asked = (
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.0, "seed": 4, "top_p": 0.8, "presence_penalty": 0.3},
        {"logprobs": 2},
    )

    def answer(ranks: ThreadRank, rank: int) -> tuple[list[list[int]], torch.Tensor]:
        runner = paged(model_of(checkpoint, places[rank], ranks), blocks=64)
        scheduler = Scheduler(BlockPool(64, 16), max_sequences=3, max_batched_tokens=16)
        engine = Engine(runner, scheduler)
        sequences = [
            sequence(prompt, name=str(index), **{**params, "max_tokens": 8})
            for index, (prompt, params) in enumerate(zip(PROMPTS, asked, strict=True))
        ]
        for each in sequences:
            engine.submit(each)
        engine.settle()
        return [list(each.generated) for each in sequences], runner._tables.tokens

    (ours, our_table), (theirs, their_table) = side_by_side(2, answer)
    assert ours == theirs
    assert torch.equal(our_table, their_table)
    whole = paged(model_of(checkpoint), blocks=64)
    engine = Engine(whole, Scheduler(BlockPool(64, 16), max_sequences=3, max_batched_tokens=16))
    alone = [
        sequence(prompt, name=str(index), **{**params, "max_tokens": 8})
        for index, (prompt, params) in enumerate(zip(PROMPTS, asked, strict=True))
    ]
    for each in alone:
        engine.submit(each)
    engine.settle()
    assert [list(each.generated) for each in alone] == ours
