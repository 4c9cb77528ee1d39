"""The folder of a quantized checkpoint: a file of safetensors for each layer, one for what is outside of
them, an index, and the source's other files.

A file a layer, so that nothing waits for the last layer and no more than one is in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.loading.checkpoint import Checkpoint
from plimsoll_worker.loading.json_file import read_json
from plimsoll_worker.loading.placement import Piece, place
from plimsoll_worker.loading.safetensors import INDEX
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.quant.compressed import Scheme
from plimsoll_worker.quantize.layers import Rounded

BESIDE = ("*.json", "*.jinja", "*.txt", "*.model")
"""Files that belong to a model besides its weights: tokenizer, templates, defaults."""
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Written:
    """One folder, filled layer by layer."""

    def __init__(self, source: Path, checkpoint: Checkpoint, scheme: Scheme, folder: Path) -> None:
        """Raises ModelUnsupported where the folder is not empty."""
        if folder.exists() and any(folder.iterdir()):
            raise ModelUnsupported(f"{folder}: not empty; name a folder that is, or that is not there yet")
        folder.mkdir(parents=True, exist_ok=True)
        self._source, self._folder, self._checkpoint, self._scheme = source, folder, checkpoint, scheme
        config = read_json(source / "config.json")
        self._dtype = TYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
        # Scales are numbers of BF16, of which FP16 has not all.
        self._scales = torch.float32 if self._dtype is torch.float16 else self._dtype
        self._rest = list(_pieces(checkpoint))
        self._files = checkpoint.config.layer_count + 1
        self._where: dict[str, str] = {}
        self._bytes = 0

    def layer(self, number: int, rounded: Mapping[str, Rounded]) -> None:
        """Write one layer: its matrices as they were rounded, all else as it is."""
        mine = [piece for piece in self._rest if piece.parameter.startswith(f"layers.{number}.")]
        self._rest = [piece for piece in self._rest if piece not in mine]
        tensors: dict[str, Tensor] = {}
        for piece in mine:
            found = rounded.get(piece.parameter.removesuffix(".weight"))
            if found is None:
                tensors[_stored_name(piece)] = self._plain(piece)
                continue
            rows = slice(*(piece.rows or (None,)))
            packed = self._scheme.pack(found.values, found.grid, rows, self._scales)
            module = _stored_name(piece).removesuffix(".weight")
            tensors |= {module + end: tensor for end, tensor in packed.items()}
        self._save(number + 1, tensors)

    def close(self) -> None:
        """Write what is outside of the layers, the index and the other files; config.json last, so that half
        a folder is no model."""
        self._save(self._files, {_stored_name(piece): self._plain(piece) for piece in self._rest})
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(self._where.items()))}
        _write_json(self._folder / INDEX, index)
        for pattern in BESIDE:
            for file in self._source.glob(pattern):
                if file.name not in (INDEX, "config.json"):
                    shutil.copyfile(file, self._folder / file.name)
        config = read_json(self._source / "config.json")
        _write_json(self._folder / "config.json", {**config, "quantization_config": self._scheme.config()})

    def _plain(self, piece: Piece) -> Tensor:
        tensor = torch.empty(self._checkpoint.shape(piece.name), dtype=self._dtype)
        self._checkpoint.read(piece.name, tensor)
        return tensor

    def _save(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        name = f"model-{number:05}-of-{self._files:05}.safetensors"
        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(held, self._folder / name, metadata={"format": "pt"})
        self._where |= dict.fromkeys(held, name)
        self._bytes += sum(tensor.nbytes for tensor in held.values())


def _pieces(checkpoint: Checkpoint) -> Sequence[Piece]:
    with torch.device("meta"):
        whole = Decoder(checkpoint.config)
    shapes = {name: found.shape for name, found in whole.named_parameters()}
    return place(shapes, checkpoint.names(), checkpoint.config)


def _stored_name(piece: Piece) -> str:
    """transformers has all but the head under `model.`."""
    return piece.name if piece.name.startswith("lm_head.") else f"model.{piece.name}"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
