"""What a model on disk can do for the loader, whatever its format, and how the format is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelNotFound
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.quant.stored import StoredMatrices
from plimsoll_worker.settings import LoadFormat


@dataclass(frozen=True, slots=True)
class Part:
    """Of a tensor some rows (the second to last dimension of a matrix, the only one of a vector) or some
    columns (the last of a matrix), each from first to last (exclusive); of several matrices, one behind the
    other in a tensor of three dimensions, every one's or one's."""

    expert: int | None = None
    """The matrix, of several; None: all of them."""
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view."""
        if self.expert is not None:
            tensor = tensor[self.expert]
        if self.rows is not None:
            tensor = tensor.narrow(max(0, tensor.ndim - 2), self.rows[0], self.rows[1] - self.rows[0])
        if self.columns is not None:
            tensor = tensor.narrow(tensor.ndim - 1, self.columns[0], self.columns[1] - self.columns[0])
        return tensor


class Checkpoint(Protocol):
    """A model's files, opened. Tensor names are those of `models/decoder.py`, or of the parts that
    `loading/placement.py` puts together."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        ...

    def names(self) -> Sequence[str]:
        """Every tensor that belongs to the model."""
        ...

    def shape(self, name: str) -> torch.Size:
        """Of one tensor, outer dimension first."""
        ...

    def read(self, name: str, target: torch.Tensor, part: Part | None = None) -> None:
        """Fill `target`, on any device and in any floating type, with one tensor or a part of it, whose shape
        it has. Called from several threads.

        Raises ModelUnreadable and ModelUnsupported, naming file and tensor.
        """
        ...

    @property
    def stored(self) -> StoredMatrices | None:
        """The matrices that lie there packed and stay so, or may; their names are among `names`. None:
        nothing does."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that comes with the model. Raises ModelNotFound, ModelUnreadable,
        ModelUnsupported."""
        ...


def open_checkpoint(path: Path, load_format: LoadFormat = LoadFormat.AUTO) -> Checkpoint:
    """Open a GGUF file, a folder with one GGUF file, or a folder with config.json and safetensors; for
    random weights config.json is enough.

    Raises ModelNotFound, ModelUnreadable, ModelUnsupported.
    """
    from plimsoll_worker.loading.gguf import GgufCheckpoint
    from plimsoll_worker.loading.random_weights import RandomCheckpoint
    from plimsoll_worker.loading.safetensors import SafetensorsCheckpoint

    if not path.exists():
        raise ModelNotFound(f"{path}: no such file or folder; the launch's modelPath must point at the model")
    if load_format is LoadFormat.DUMMY:
        return RandomCheckpoint(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(
                f"{path}: found a file, expected *.gguf or a folder with config.json and *.safetensors"
            )
        return GgufCheckpoint(path)
    if (path / "config.json").exists():
        return SafetensorsCheckpoint(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return GgufCheckpoint(files[0])
    if files:
        raise ModelNotFound(
            f"{path}: found {len(files)} GGUF files ({', '.join(file.name for file in files[:4])}); "
            "let modelPath name one of them"
        )
    raise ModelNotFound(f"{path}: found neither config.json nor a *.gguf file in this folder")
