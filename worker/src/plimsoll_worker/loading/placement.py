"""Which tensors of a checkpoint fill which part of a parameter.

The engine keeps queries, keys and values in one matrix, gate and up in another, and all experts of a layer
stacked, because one large product is faster than several small ones; checkpoints mostly keep them apart.
Each part is read into its place, so that no matrix is ever there twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the checkpoint and its place."""

    name: str
    """In the checkpoint."""
    parameter: str
    expert: int | None = None
    """Index in the first dimension; None: the whole of it."""
    rows: tuple[int, int] | None = None
    """First and last (exclusive) of the second to last dimension of a matrix, or of the only one of a
    vector; None: all."""

    def region(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of the parameter that the tensor fills: a view."""
        part = parameter if self.expert is None else parameter[self.expert]
        if self.rows is None:
            return part
        return part.narrow(max(0, part.ndim - 2), self.rows[0], self.rows[1] - self.rows[0])


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


def _pieces(name: str, shape: torch.Size, stored: set[str], config: ModelConfig) -> list[Piece]:
    """Of the parameter `name`: itself, its parts, or its parts expert by expert."""
    if name in stored:
        return [Piece(name, name)]
    stem, _, leaf = name.rpartition(".")
    if leaf in ("weight", "bias"):
        stem, dot, module = stem.rpartition(".")
        return [
            Piece(f"{stem}{dot}{part}.{leaf}", name, rows=rows)
            for part, rows in _parts(module, shape[0], config)
        ]
    parts = _parts(leaf, shape[1], config)
    if f"{stem}.{parts[0][0]}" in stored:
        return [Piece(f"{stem}.{part}", name, rows=rows) for part, rows in parts]
    return [
        Piece(f"{stem}.{expert}.{part}.weight", name, expert, rows)
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
