"""Which tensors of a checkpoint, or which parts of them, fill which part of a parameter.

The engine keeps queries, keys and values in one matrix, gate and up in another, and all experts of a layer
stacked, because one large product is faster than several small ones; checkpoints mostly keep them apart.
Each part is read into its place, so that no matrix is ever there twice.

What belongs where is found for the whole model (`place`); a process that holds some layers or a rank's part
of them then takes its share of each piece (`shares`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.loading.checkpoint import Part
from plimsoll_worker.parallel.position import Position


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the checkpoint, or a part of one, and its place."""

    name: str
    """In the checkpoint."""
    parameter: str
    expert: int | None = None
    """Index in the first dimension; None: the whole of it."""
    rows: tuple[int, int] | None = None
    """First and last (exclusive) of the second to last dimension of a matrix, or of the only one of a
    vector; None: all."""
    part: Part | None = None
    """Of the tensor; None: all of it."""

    def region(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of the parameter that the tensor fills: a view."""
        part = parameter if self.expert is None else parameter[self.expert]
        return Part(rows=self.rows).of(part)


def place(
    shapes: Mapping[str, torch.Size], stored: Collection[str], config: ModelConfig
) -> tuple[Piece, ...]:
    """A piece for each tensor of the checkpoint, in the order of the model's parameters.

    shapes: of the parameters; stored: names in the checkpoint. Raises ModelUnreadable when a tensor is
    missing, ModelUnsupported when one has no place.
    """
    pieces = tuple(
        piece for name, shape in shapes.items() for piece in _pieces(name, shape, set(stored), config)
    )
    wanted = {piece.name for piece in pieces}
    if missing := sorted(wanted - set(stored)):
        raise ModelUnreadable(f"the checkpoint lacks {len(missing)} tensors, the first is {missing[0]}")
    if strange := sorted(set(stored) - wanted):
        raise ModelUnsupported(
            f"the checkpoint has {len(strange)} tensors this engine has no place for: {strange[0]}"
        )
    return pieces


def shares(
    pieces: Iterable[Piece],
    shapes: Mapping[str, torch.Size],
    held: Collection[str],
    config: ModelConfig,
    position: Position,
) -> tuple[Piece, ...]:
    """What the process at `position`, which has the parameters `held`, reads of the whole model's `pieces`.
    shapes: of the whole model's parameters."""
    mine = (piece for piece in pieces if piece.parameter in held)
    if position.ranks == 1:
        return tuple(mine)
    return tuple(part for piece in mine for part in _cut(piece, shapes[piece.parameter], config, position))


def _cut(piece: Piece, shape: torch.Size, config: ModelConfig, position: Position) -> Iterator[Piece]:
    """Matrices in front of a non-linearity are cut by rows, those behind it by columns."""
    *_, module, leaf = piece.parameter.split(".")
    if module in ("o_proj", "down_proj") and leaf != "bias":
        width = shape[-1] // position.ranks
        yield replace(piece, part=Part(columns=(position.rank * width, (position.rank + 1) * width)))
        return
    rows = shape[max(0, len(shape) - 2)]
    bands = _bands(module, rows, config, position)
    if bands is None:
        yield piece
        return
    first, last = piece.rows or (0, rows)
    filled = 0
    for begin, end in bands:
        low, high = max(first, begin), min(last, end)
        if low < high:
            place = (filled + low - begin, filled + high - begin)
            whole = (low, high) == (first, last)
            part = None if whole else Part(rows=(low - first, high - first))
            yield replace(piece, rows=place, part=part)
        filled += end - begin


def _bands(module: str, rows: int, config: ModelConfig, position: Position) -> list[tuple[int, int]] | None:
    """The rows of a whole matrix that a rank has, one band behind the other; None: all, on every rank."""
    rank, ranks = position.rank, position.ranks
    if module in ("embed_tokens", "lm_head"):
        return [position.vocabulary(config)]
    if module == "gate_up_proj":
        width = rows // 2 // ranks
        return [(start + rank * width, start + (rank + 1) * width) for start in (0, rows // 2)]
    if module == "qkv_proj":
        heads, kv_heads = config.head_count // ranks, position.kv_heads(config)
        queries = (rank * heads, (rank + 1) * heads)
        keys, values = (
            (before + kv_heads[0], before + kv_heads[1])
            for before in (config.head_count, config.head_count + config.kv_head_count)
        )
        return [(first * config.head_dim, last * config.head_dim) for first, last in (queries, keys, values)]
    return None


def _pieces(name: str, shape: torch.Size, stored: set[str], config: ModelConfig) -> list[Piece]:
    """Of the parameter `name`: itself, its parts, or its parts expert by expert."""
    if name in stored:
        return [Piece(name, name)]
    stem, _, leaf = name.rpartition(".")
    if len(shape) > 2:
        return _of_experts(stem, name, shape, stored, config)
    stem, dot, module = stem.rpartition(".")
    return [
        Piece(f"{stem}{dot}{part}.{leaf}", name, rows=rows) for part, rows in _parts(module, shape[0], config)
    ]


def _of_experts(
    module: str, parameter: str, shape: torch.Size, stored: set[str], config: ModelConfig
) -> list[Piece]:
    """Of all experts' matrices, which checkpoints hold together, or their parts together, or one by one."""
    if module in stored:
        return [Piece(module, parameter)]
    stem, _, leaf = module.rpartition(".")
    parts = _parts(leaf, shape[1], config)
    if f"{stem}.{parts[0][0]}" in stored:
        return [Piece(f"{stem}.{part}", parameter, rows=rows) for part, rows in parts]
    return [
        Piece(f"{stem}.{expert}.{part}.weight", parameter, expert, rows)
        for expert in range(shape[0])
        for part, rows in parts
    ]


def _parts(module: str, rows: int, config: ModelConfig) -> list[tuple[str, tuple[int, int] | None]]:
    """Names of the matrices that `module` of so many rows is made of, and the rows of each."""
    if module == "qkv_proj":
        queries, keys = (heads * config.head_dim for heads in (config.head_count, config.kv_head_count))
        return [
            ("q_proj", (0, queries)),
            ("k_proj", (queries, queries + keys)),
            ("v_proj", (queries + keys, rows)),
        ]
    if module == "gate_up_proj":
        return [("gate_proj", (0, rows // 2)), ("up_proj", (rows // 2, rows))]
    return [(module, None)]
