"""A model with random weights made on the device from config.json alone: speed and memory depend on the shape
of a model, not on what it says.

Each parameter has a generator of its own, seeded by its name, so a model is the same whatever the order and
however many threads fill it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelNotFound
from plimsoll_worker.loading.checkpoint import Part
from plimsoll_worker.loading.config_json import config_from_folder
from plimsoll_worker.loading.tokenizer import Tokenizer, tokenizer_from_folder
from plimsoll_worker.models.decoder import Decoder


class RandomCheckpoint:
    """A folder with config.json; a tokenizer is used when there is one."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelNotFound, ModelUnreadable, ModelUnsupported."""
        if not (folder / "config.json").exists():
            raise ModelNotFound(f"{folder}: config.json is missing; random weights need nothing else")
        self.folder = folder
        self._config = config_from_folder(folder)
        with torch.device("meta"):
            shapes = Decoder(self._config).named_parameters()
        self._shapes = {name: parameter.shape for name, parameter in shapes}

    @property
    def config(self) -> ModelConfig:
        return self._config

    def names(self) -> Sequence[str]:
        return tuple(self._shapes)

    def shape(self, name: str) -> torch.Size:
        return self._shapes[name]

    def read(self, name: str, target: torch.Tensor, part: Part | None = None) -> None:
        """Matrices keep the size of what goes through them, so activations of any depth stay finite: normal
        with a variance of 1 / inputs. Norms are 1, biases 0. A part is that of the whole tensor, or of the
        whole matrix of an expert, which is made for it."""
        if len(self._shapes[name]) > 2:
            self._read_experts(name, target, part or Part())
            return
        if part is not None:
            whole = torch.empty(self._shapes[name], dtype=target.dtype, device=target.device)
            self.read(name, whole)
            target.copy_(part.of(whole))
            return
        if target.ndim == 1:
            target.fill_(0.0 if name.endswith("bias") else 1.0 - self._config.norm_offset)
            return
        _fill(target, name)

    def _read_experts(self, name: str, target: torch.Tensor, part: Part) -> None:
        count, *shape = self._shapes[name]
        experts = range(count) if part.expert is None else [part.expert]
        cut = Part(rows=part.rows, columns=part.columns)
        whole = torch.empty(shape, dtype=target.dtype, device=target.device)
        for place, expert in zip(target.view(-1, *target.shape[-2:]), experts, strict=True):
            _fill(whole, f"{name}.{expert}")
            place.copy_(cut.of(whole))

    @property
    def stored(self) -> None:
        return None

    def tokenizer(self) -> Tokenizer:
        """The folder's, or one token for each byte."""
        if (self.folder / "tokenizer.json").exists():
            return tokenizer_from_folder(self.folder)
        alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        backend = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return Tokenizer(backend=backend)


def _fill(matrix: torch.Tensor, name: str) -> None:
    generator = torch.Generator(matrix.device).manual_seed(zlib.crc32(name.encode()))
    matrix.normal_(std=matrix.shape[-1] ** -0.5, generator=generator)
