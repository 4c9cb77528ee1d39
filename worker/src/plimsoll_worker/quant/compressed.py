"""compressed-tensors, written: how rounded matrices lie in a folder that this engine, vLLM and transformers
load.

Sources: compressed-tensors `quant_args.py`, `quant_config.py`, `compressors/quantized_compressors/
pack_quantized.py`. What reads it here is `four_bits.PackedIntegers` and `eight_bits.Bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plimsoll_worker.launch import Precision
from plimsoll_worker.quant.grids import FloatGrid, Grid, IntegerGrid, float_grid, grouped_grid, symmetric_grid

WORD = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """How all matrices of a checkpoint are kept."""

    precision: Precision
    """INT4, INT8 or FP8."""
    group: int | None = None
    """INT4: columns that share a scale and a zero point."""

    def grid(self, weights: Tensor, importance: Tensor) -> Grid:
        """For weights (outputs, inputs), by the least error weighted with importance (inputs)."""
        if self.precision is Precision.FP8:
            return float_grid(weights, importance)
        if self.precision is Precision.INT8:
            return symmetric_grid(weights, importance, 8)
        assert self.group is not None
        return grouped_grid(weights, importance, self.group, 4)

    def pack(self, values: Tensor, grid: Grid, rows: slice, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Tensors of some rows of a matrix by the ends of their names; scales in `dtype`."""
        if isinstance(grid, FloatGrid):
            numbers = grid.numbers(values)[rows]
            return {".weight": numbers, ".weight_scale": grid.scales[rows].to(dtype)}
        assert isinstance(grid, IntegerGrid)
        bits, numbers = self.precision.bits, grid.numbers(values)[rows]
        lowest = 0 if self.group is not None else -(2 ** (bits - 1))
        packed = {
            ".weight_packed": pack_words(numbers - lowest, bits),
            ".weight_scale": grid.scales[rows].to(dtype),
            ".weight_shape": torch.tensor(numbers.shape),
        }
        if self.group is not None:
            packed[".weight_zero_point"] = pack_words(grid.zeros[rows].t(), bits).t().contiguous()
        return packed

    def config(self) -> Mapping[str, Any]:
        """`quantization_config` of the config.json. A tied head is named too: to others it is a Linear."""
        real = self.precision is Precision.FP8
        weights = {
            "num_bits": self.precision.bits,
            "type": "float" if real else "int",
            "symmetric": self.group is None,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "actorder": None if real else "weight",
            "dynamic": False,
            "observer": "mse",
        }
        # As this engine does it: activations of FP8 matrices are rounded row by row.
        inputs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs if real else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized" if real else "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
        }


def pack_words(numbers: Tensor, bits: int) -> Tensor:
    """(rows, count) of 0 to 2**bits - 1 → (rows, words) int32, the first number in the lowest bits."""
    per_word = WORD // bits
    padded = torch.nn.functional.pad(numbers.long(), (0, -numbers.shape[1] % per_word))
    places = torch.arange(per_word, device=numbers.device) * bits
    words = (padded.reshape(len(padded), -1, per_word) << places).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
