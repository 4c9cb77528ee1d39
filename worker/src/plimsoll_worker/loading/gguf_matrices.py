"""The matrices of a GGUF file that stay in the blocks they were published in.

They are read rows after rows: a few MiB of blocks go to the device as they lie in the file and become numbers
and scales there, so nothing is wide on the way and no matrix is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from plimsoll_worker.kernels.matrix import QuantizedMatrix, rows_of
from plimsoll_worker.launch import GGUF
from plimsoll_worker.loading.gguf_file import GgufFile, GgufTensor
from plimsoll_worker.loading.transfer import Extent, copy_extent
from plimsoll_worker.quant.form import Form, columns_of, copy_matrix
from plimsoll_worker.quant.ggml import unpack_blocks

NUMBERS_AT_ONCE = 2**22
"""Of one reader: 4 MiB of blocks at most, about six times that while they are unpacked, 16 MiB widened."""


@dataclass(frozen=True)
class GgufMatrices:
    """Those of one file, by the engine's names of their weights."""

    file: GgufFile
    tensors: Mapping[str, GgufTensor]
    """Of the types that are kept."""
    paired: Mapping[str, int]
    """Rows of a head, of the matrices whose heads llama.cpp's converter has interleaved."""
    format = GGUF
    optional = True

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        return {name: Form.of_block(tensor.type) for name, tensor in self.tensors.items()}

    def fill(
        self,
        name: str,
        region: QuantizedMatrix,
        *,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> None:
        tensor, device = self.tensors[name], region.numbers.device
        outputs, inputs = tensor.shape
        height = self.paired.get(name, 1)
        first, last = rows or (0, outputs)
        assert first % height == last % height == 0, f"rows {first} to {last} cut a head of {height}"
        step = max(1, NUMBERS_AT_ONCE // inputs // height) * height
        for start in range(first, last, step):
            end = min(start + step, last)
            blocks = self._blocks(tensor.part(start, end), device)
            if name in self.paired:
                blocks = halves_from_pairs(blocks, (end - start) // height)
            matrix = unpack_blocks(tensor.type, blocks, region.dtype)
            matrix = matrix if columns is None else columns_of(matrix, *columns)
            copy_matrix(matrix, rows_of(region, start - first, end - first))
            if device.type == "cuda":
                # The next blocks may get this memory, and arrive on a stream of their own.
                torch.cuda.current_stream(device).synchronize()

    def _blocks(self, tensor: GgufTensor, device: torch.device) -> torch.Tensor:
        """As they lie in the file, (rows, bytes of a row) uint8."""
        blocks = torch.empty(
            (tensor.shape[0], tensor.bytes // tensor.shape[0]), dtype=torch.uint8, device=device
        )
        copy_extent(Extent(self.file.path, tensor.offset, torch.uint8, blocks.shape), blocks)
        return blocks


def halves_from_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's `LlamaModel.permute` (convert_hf_to_gguf.py): rows of a head from pairs back to
    halves.

    (heads x half x 2, ...) → (heads x 2 x half, ...)
    """
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
