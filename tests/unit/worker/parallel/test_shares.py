"""What each process of a replica holds: together the whole model, nothing twice that need not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.unit.worker.test_loading import written
from tests.unit.worker.test_models import CASES, SMALL, configuration, saved

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading import transfer
from plimsoll_worker.loading.checkpoint import Checkpoint, Part, open_checkpoint
from plimsoll_worker.loading.placement import Piece, place, shares
from plimsoll_worker.loading.transfer import copy_part
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position, check_divides
from plimsoll_worker.settings import LoadFormat

CPU = torch.device("cpu")
DIVISIBLE = {"intermediate_size": 96}
"""By 2, 3 and 6."""
PARTS = {
    "rows": Part(rows=(3, 9)),
    "columns": Part(columns=(2, 5)),
    "last row": Part(rows=(12, 13)),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("shape", [(13, 7), (3, 13, 7)], ids=["matrix", "experts"])
@pytest.mark.parametrize("kept", [torch.float32, torch.float16])
def test_a_part_of_a_tensor_is_read_and_converted(
    part: Part, shape: tuple[int, ...], kept: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 64)
    monkeypatch.setattr(transfer, "_threads", transfer.threading.local())
    tensor = torch.randn(shape)
    target = torch.zeros(part.of(tensor).shape, dtype=kept)
    copy_part(written(tmp_path / "t", tensor), part, target)
    assert torch.equal(target, part.of(tensor).to(kept))


def positions(config: ModelConfig, stages: int, ranks: int) -> list[Position]:
    cuts = [stage * config.layer_count // stages for stage in range(stages + 1)]
    return [
        Position(first=first, last=last, stage=stage, stages=stages, rank=rank, ranks=ranks)
        for stage, (first, last) in enumerate(pairwise(cuts))
        for rank in range(ranks)
    ]


def sizes(config: ModelConfig) -> list[int]:
    """Numbers of ranks that divide the model, up to 6."""
    found = []
    for ranks in range(2, 7):
        try:
            check_divides(config, ranks)
        except ModelUnsupported:
            continue
        found.append(ranks)
    return found


def held(checkpoint: Checkpoint, position: Position) -> tuple[Decoder, tuple[Piece, ...]]:
    """What a process has, without contents, and what it reads."""
    config = checkpoint.config
    with torch.device("meta"):
        whole, model = Decoder(config), Decoder(config, position)
    shapes = {name: part.shape for name, part in whole.named_parameters()}
    pieces = place(shapes, checkpoint.names(), config)
    return model, shares(pieces, shapes, dict(model.named_parameters()), config, position)


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES.keys())
def test_every_element_is_filled_once_and_every_tensor_read_by_someone(
    kind: str, changes: Mapping[str, object], tmp_path: Path
) -> None:
    saved(kind, {**changes, **DIVISIBLE}, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = checkpoint.config
    for stages, ranks in [(3, 1), *((1, ranks) for ranks in sizes(config)), (2, sizes(config)[0])]:
        read = {name: torch.zeros(checkpoint.shape(name), dtype=torch.uint8) for name in checkpoint.names()}
        for position in positions(config, stages, ranks):
            model, pieces = held(checkpoint, position)
            filled = {
                name: torch.zeros(part.shape, dtype=torch.uint8) for name, part in model.named_parameters()
            }
            for piece in pieces:
                source = read[piece.name] if piece.part is None else piece.part.of(read[piece.name])
                region = piece.region(filled[piece.parameter])
                assert region.shape == source.shape, piece
                region += 1
                source += 1
            first, last = position.vocabulary(config)
            for name in ("embed_tokens.weight", "lm_head.weight"):
                if name in filled:  # rows of no token
                    filled[name][last - first :] += 1
            assert [name for name, count in filled.items() if not (count == 1).all()] == []
        assert [name for name, count in read.items() if not count.all()] == []


def test_a_rank_and_a_stage_have_what_the_whole_has_there(tmp_path: Path) -> None:
    saved("Llama", {"num_key_value_heads": 1, "attention_bias": True}, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = checkpoint.config
    whole = load_model(checkpoint, device=CPU, precision=Precision.FP32).state_dict()
    position = Position(first=1, last=3, stage=1, stages=2, rank=1, ranks=3)
    mine = load_model(checkpoint, device=CPU, precision=Precision.FP32, position=position).state_dict()
    head, queries = config.head_dim, config.head_count * config.head_dim
    qkv = whole["layers.2.self_attn.qkv_proj.weight"]
    # Two of six query heads, and the one head of keys and values that all ranks have.
    expected = torch.cat((qkv[2 * head : 4 * head], qkv[queries:]))
    assert torch.equal(mine["layers.2.self_attn.qkv_proj.weight"], expected)
    output = whole["layers.2.self_attn.o_proj.weight"]
    assert torch.equal(mine["layers.2.self_attn.o_proj.weight"], output[:, 2 * head : 4 * head])
    rows = -(-config.vocab_size // 3)
    assert torch.equal(mine["lm_head.weight"], whole["lm_head.weight"][rows : 2 * rows])
    assert not [name for name in mine if name.startswith(("layers.0.", "embed_tokens"))]


def test_random_weights_are_the_same_numbers_however_they_are_cut(tmp_path: Path) -> None:
    configuration("Llama")(**SMALL).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, LoadFormat.DUMMY)
    whole = load_model(checkpoint, device=CPU, precision=Precision.FP32).state_dict()
    name = "layers.1.mlp.down_proj.weight"
    parts = [
        load_model(checkpoint, device=CPU, precision=Precision.FP32, position=position).state_dict()[name]
        for position in positions(checkpoint.config, 1, 2)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole[name])


def test_what_does_not_divide_is_told_by_its_numbers(tmp_path: Path) -> None:
    configuration("Llama")(**SMALL).save_pretrained(tmp_path)
    config = open_checkpoint(tmp_path, LoadFormat.DUMMY).config
    for changes, ranks, message in (
        ({}, 4, "6 attention heads do not divide by tensor parallel 4"),
        ({"intermediate_size": 81}, 2, "81 columns of the MLP do not divide by tensor parallel 2"),
        (DIVISIBLE, 3, "2 KV heads neither divide by tensor parallel 3 nor divide it"),
    ):
        with pytest.raises(ModelUnsupported, match=message):
            check_divides(replace(config, **changes), ranks)
