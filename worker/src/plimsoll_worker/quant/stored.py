"""Matrices that a checkpoint holds packed, brought into the engine's own order number by number.

A packed matrix is several tensors; the engine knows it by the name of the weight it stands for. Nothing is
widened to 16 bit on the way: numbers stay the numbers that the quantizer chose, and scales are kept in the
type of the computation, in FP32 beside FP8. What the kernels have no form for is refused by name before a
weight is read, because an approximation would be another model than the one that was published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.kernels.matrix import QuantizedMatrix, rows_of
from plimsoll_worker.quant.form import Form, columns_of, copy_matrix

Shapes = Mapping[str, torch.Size]
Tensors = Mapping[str, Tensor]


class Layout(Protocol):
    """How one format packs a matrix."""

    @property
    def numbers(self) -> str:
        """End of the name of the tensor that holds the numbers, behind the module's."""
        ...

    @property
    def beside(self) -> tuple[str, ...]:
        """Ends of the names of all else that belongs to the matrix."""
        ...

    def shape(self, stored: Shapes) -> tuple[int, int]:
        """(outputs, inputs) by the shapes of the tensors."""
        ...

    def form(self, name: str, stored: Shapes) -> Form:
        """What it becomes. Raises ModelUnsupported."""
        ...

    def unpack(self, name: str, stored: Tensors, dtype: torch.dtype) -> QuantizedMatrix:
        """The matrix, computing in `dtype`. Raises ModelUnsupported where its contents rule it out."""
        ...


class StoredMatrices(Protocol):
    """The packed matrices of one checkpoint, by the engine's names of their weights."""

    @property
    def format(self) -> str:
        """As a launch's `weights.checkpoint` names it."""
        ...

    @property
    def optional(self) -> bool:
        """Whether they can be read unpacked too, like any other tensor."""
        ...

    @property
    def forms(self) -> Mapping[str, Form]:
        """What each becomes."""
        ...

    def fill(
        self,
        name: str,
        region: QuantizedMatrix,
        *,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> None:
        """Read one matrix, or the rows or columns of it from first to last (exclusive), into its place on any
        device. Called from several threads.

        Raises ModelUnreadable, ModelUnsupported.
        """
        ...


def staying(stored: StoredMatrices | None, *, as_stored: bool) -> StoredMatrices | None:
    """Those of a checkpoint that are not unpacked while they are read: all that cannot be, and with
    `as_stored` those that could."""
    return None if stored is not None and stored.optional and not as_stored else stored


@dataclass(frozen=True)
class PackedMatrices:
    """Those of a checkpoint whose matrices are several tensors each."""

    format: str
    """As `quant_method` names it."""
    layout: Layout
    shapes: Mapping[str, Shapes]
    """Of each matrix's tensors, by the ends of their names."""
    read_tensor: Callable[[str, str], Tensor]
    """(name, end) → one tensor, on the host."""
    forms: Mapping[str, Form] = field(init=False)
    optional = False

    def __post_init__(self) -> None:
        for name, stored in self.shapes.items():
            if missing := {self.layout.numbers, *_required(self.layout)} - stored.keys():
                raise ModelUnreadable(f"{name}: its {self.format} matrix lacks {min(missing)}")
        forms = {name: self.layout.form(name, stored) for name, stored in self.shapes.items()}
        object.__setattr__(self, "forms", forms)

    def shape(self, name: str) -> torch.Size:
        """(outputs, inputs)."""
        return torch.Size(self.layout.shape(self.shapes[name]))

    def fill(
        self,
        name: str,
        region: QuantizedMatrix,
        *,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> None:
        tensors = {end: self.read_tensor(name, end) for end in self.shapes[name]}
        matrix = self.layout.unpack(name, tensors, region.dtype)
        matrix = matrix if columns is None else columns_of(matrix, *columns)
        copy_matrix(matrix if rows is None else rows_of(matrix, *rows), region)


def _required(layout: Layout) -> tuple[str, ...]:
    return tuple(end for end in layout.beside if end.endswith(("scales", "weight_scale", "weight_scale_inv")))


def nibbles(packed: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight numbers of 0 to 15 of each int32 (…, n) → (…, 8 n) uint8. The j-th is bits 4 order[j] and up."""
    numbers = torch.empty((*packed.shape, len(order)), dtype=torch.uint8)
    for place, source in enumerate(order):
        numbers[..., place] = (packed >> 4 * source) & 15
    return numbers.flatten(-2)


def eighths(packed: Tensor) -> Tensor:
    """Four numbers of 0 to 255 of each int32 (…, n) → (…, 4 n) uint8, the lowest byte first."""
    return packed.contiguous().view(torch.uint8)


def refuse(name: str, found: object, expected: str) -> ModelUnsupported:
    return ModelUnsupported(f"{name}: found {found}: this engine keeps {expected}; use the unquantized model")
