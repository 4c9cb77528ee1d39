"""A folder with config.json and safetensors files (one, or several with an index) as a checkpoint.

The safetensors library checks each file; where the tensors lie is read from the header here, as the library
gives no positions and would make a copy in host memory of each tensor (format:
https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelNotFound, ModelUnreadable, ModelUnsupported
from plimsoll_worker.loading.checkpoint import Part
from plimsoll_worker.loading.config_json import config_from_folder
from plimsoll_worker.loading.json_file import read_json
from plimsoll_worker.loading.tokenizer import Tokenizer, tokenizer_from_folder
from plimsoll_worker.loading.transfer import Extent, copy_extent, copy_part
from plimsoll_worker.quant.formats import layout_of
from plimsoll_worker.quant.stored import PackedMatrices

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PACKED = {
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""Types that stand beside them in quantized checkpoints."""
_BUFFERS = (".rotary_emb.inv_freq",)
"""Saved by old versions of transformers though it follows from config.json."""
_MIXTRAL = re.compile(r"(layers\.\d+)\.block_sparse_moe\.(.+)")
_MIXTRAL_PARTS = {".w1.": ".gate_proj.", ".w3.": ".up_proj.", ".w2.": ".down_proj."}
"""Mixtral's own names; transformers translates them likewise (conversion_mapping.py)."""


class SafetensorsCheckpoint:
    """One folder, opened."""

    def __init__(self, folder: Path) -> None:
        """Read config.json and every header. Raises ModelNotFound, ModelUnreadable, ModelUnsupported."""
        self.folder = folder
        self._config = config_from_folder(folder)
        found = {name: extent for path in _weight_files(folder) for name, extent in _extents(path).items()}
        self._packed: dict[str, dict[str, Extent]] = {}
        self.stored = self._take_packed(found)
        self._where: dict[str, Extent] = {}
        for stored, extent in found.items():
            if (name := self._engine_name(stored)) is None:
                continue
            if extent.dtype not in FLOATS.values():
                kind = next(kind for kind, dtype in PACKED.items() if dtype is extent.dtype)
                raise ModelUnsupported(
                    f"{extent.path}: tensor {stored} is {kind}: this engine reads {', '.join(FLOATS)}, and"
                    " matrices that a quantization_config speaks of"
                )
            self._where[name] = extent

    @property
    def config(self) -> ModelConfig:
        return self._config

    def names(self) -> Sequence[str]:
        return (*self._where, *self._packed)

    def shape(self, name: str) -> torch.Size:
        if self.stored is not None and name in self._packed:
            return self.stored.shape(name)
        return self._where[name].shape

    def read(self, name: str, target: torch.Tensor, part: Part | None = None) -> None:
        extent = self._where[name]
        if part is None:
            copy_extent(extent, target)
        else:
            copy_part(extent, part, target)

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_folder(self.folder)

    def _take_packed(self, found: dict[str, Extent]) -> PackedMatrices | None:
        """The packed matrices that config.json speaks of; their tensors are taken out of `found`."""
        file = self.folder / "config.json"
        config = read_json(file).get("quantization_config")
        if not config:
            return None
        method, layout = layout_of(config, str(file))
        ends = (layout.numbers, *layout.beside)
        for stored in [name for name in found if name.endswith(layout.numbers)]:
            module = stored.removesuffix(layout.numbers)
            name = self._engine_name(f"{module}.weight")
            if name is None or found[stored].dtype in FLOATS.values():
                continue
            self._packed[name] = {end: found.pop(module + end) for end in ends if module + end in found}
        if not self._packed:
            raise ModelUnreadable(
                f"{file}: quantization_config speaks of {method}, and no tensor *{layout.numbers} is packed"
                " so"
            )
        return PackedMatrices(
            format=method,
            layout=layout,
            shapes={
                name: {end: extent.shape for end, extent in parts.items()}
                for name, parts in self._packed.items()
            },
            read_tensor=self._read_packed,
        )

    def _read_packed(self, name: str, end: str) -> torch.Tensor:
        extent = self._packed[name][end]
        tensor = torch.empty(extent.shape, dtype=extent.dtype)
        copy_extent(extent, tensor)
        return tensor

    def _engine_name(self, stored: str) -> str | None:
        if stored.endswith(_BUFFERS) or (stored == "lm_head.weight" and self._config.tied):
            return None
        name = stored.removeprefix("model.")
        expert = _MIXTRAL.fullmatch(name)
        if expert:
            layer, rest = expert.groups()
            for theirs, ours in _MIXTRAL_PARTS.items():
                rest = rest.replace(theirs, ours)
            return f"{layer}.mlp.{rest}"
        return name


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


def _extents(path: Path) -> dict[str, Extent]:
    """Where each tensor lies. Raises ModelUnreadable, ModelUnsupported."""
    try:
        with safe_open(path, framework="pt", backend="pread"):  # checks header, offsets and length
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise ModelUnreadable(f"{path}: truncated or not safetensors: {error}") from error
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        dtype = {**FLOATS, **PACKED}.get(entry["dtype"])
        if dtype is None:
            raise ModelUnsupported(
                f"{path}: tensor {name} is {entry['dtype']}: this engine reads {', '.join(FLOATS)}"
            )
        offset = 8 + length + entry["data_offsets"][0]
        found[name] = Extent(path, offset, dtype, torch.Size(entry["shape"]))
    return found
