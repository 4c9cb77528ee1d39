"""A folder with config.json and safetensors files (one, or several with an index) as a checkpoint.

Tensors are read with pread rather than through a mapping: a mapping counts the file's pages into the process
beside the copy it keeps, and turns a file that shrinks or a volume that goes away into SIGBUS instead of an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from plimsoll_worker.config import ModelConfig, config_from_json
from plimsoll_worker.errors import ModelNotFound, ModelUnreadable, ModelUnsupported
from plimsoll_worker.loading.json_file import read_json
from plimsoll_worker.loading.tokenizer import Tokenizer, tokenizer_from_folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_BUFFERS = (".rotary_emb.inv_freq",)
"""Saved by old versions of transformers though it follows from config.json."""


class SafetensorsCheckpoint:
    """One folder, opened."""

    def __init__(self, folder: Path) -> None:
        """Read config.json and every header. Raises ModelNotFound, ModelUnreadable, ModelUnsupported."""
        self.folder = folder
        generation = folder / "generation_config.json"
        self._config = config_from_json(
            read_json(folder / "config.json"),
            source=str(folder / "config.json"),
            generation=read_json(generation) if generation.exists() else None,
        )
        self._files = {path.name: _open(path) for path in _weight_files(folder)}
        self._where = {
            engine: (file, stored)
            for file, handle in self._files.items()
            for stored in handle.keys()  # noqa: SIM118 - not a dict
            if (engine := self._engine_name(stored)) is not None
        }

    @property
    def config(self) -> ModelConfig:
        return self._config

    def names(self) -> Sequence[str]:
        return tuple(self._where)

    def read(self, name: str) -> torch.Tensor:
        file, stored = self._where[name]
        try:
            tensor: torch.Tensor = self._files[file].get_tensor(stored)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelUnreadable(f"{self.folder / file}: tensor {stored}: {error}") from error
        if tensor.dtype not in FLOATS:
            raise ModelUnsupported(
                f"{self.folder / file}: tensor {stored} is {tensor.dtype}: this engine reads F32, F16, BF16"
            )
        return tensor

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_folder(self.folder)

    def _engine_name(self, stored: str) -> str | None:
        if stored.endswith(_BUFFERS) or (stored == "lm_head.weight" and self._config.tied):
            return None
        return stored.removeprefix("model.")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelUnreadable(
                f"{index}: weight_map is {weight_map!r}, expected tensor names and file names"
            )
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise ModelUnreadable(f"{folder}: {missing[0]} is missing, {INDEX} lists {len(names)} files")
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelNotFound(
            f"{folder}: found config.json and {len(files)} *.safetensors files, expected {SINGLE} or {INDEX}"
        )
    return files


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise ModelUnreadable(f"{path}: truncated or not safetensors: {error}") from error
