"""Experts in fewer bits: their kernel under Triton's interpreter and the reference, against FP64."""

from __future__ import annotations

import pytest
import torch
from tests.unit.worker.kernels.paged import error
from tests.unit.worker.kernels.quantization import KINDS, random_matrix
from torch import Tensor

from plimsoll_worker.kernels import reference
from plimsoll_worker.kernels.expert_tiles import grouped_linear
from plimsoll_worker.kernels.fp8_rows import fp8_rows
from plimsoll_worker.kernels.matrix import QuantizedMatrix, dequantize
from plimsoll_worker.kernels.quantized_tiling import Tiles
from plimsoll_worker.kernels.reference import Activation

EXACT = 1e-4
UNEVEN = (0, 37, 1, 0, 16)
"""Rows of each expert: none, more than two tiles, one, and one tile."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def ends(counts: tuple[int, ...]) -> Tensor:
    return torch.tensor(counts).cumsum(0).to(torch.int32)


def wanted(x: Tensor, weight: QuantizedMatrix, counts: tuple[int, ...], gated: Activation | None) -> Tensor:
    """In FP64, expert by expert."""
    matrices = dequantize(weight, torch.float64).view(len(counts), -1, weight.inputs)
    parts = [part @ matrix.t() for part, matrix in zip(x.double().split(counts), matrices, strict=True)]
    out = torch.cat(parts)
    return out if gated is None else reference.gated_activation(out, gated)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("inputs", "outputs", "gated"),
    [
        pytest.param(256, 64, None, id="even"),
        pytest.param(288, 40, None, id="with a rest"),
        pytest.param(160, 48, "silu", id="gate and up"),
    ],
)
def test_every_row_meets_its_expert(kind: str, inputs: int, outputs: int, gated: Activation | None) -> None:
    if kind == "FP8 blocks":
        outputs = 128  # experts are whole blocks
    weight = random_matrix(kind, len(UNEVEN) * outputs, inputs, torch.float32)
    x = torch.randn(sum(UNEVEN), inputs) / 16
    out = grouped_linear(x, weight, ends(UNEVEN), gated=gated, tiles=Tiles(32, 16, 128, 1, 4, 1, spans=2))
    assert error(out, wanted(x, weight, UNEVEN, gated)) < EXACT


@pytest.mark.parametrize("kind", ["INT8", "INT4 group 128", "FP8"])
@pytest.mark.parametrize("counts", [(0, 0, 1), (2, 0, 0), (3, 70, 0)], ids=str)
def test_rows_are_gathered_and_tiles_found_for_any_number(kind: str, counts: tuple[int, ...]) -> None:
    weight = random_matrix(kind, len(counts) * 48, 160, torch.float32)
    x = torch.randn(9, 160)
    places = torch.randint(0, 9, (sum(counts),))
    out = grouped_linear(x, weight, ends(counts), places=places)
    assert error(out, wanted(x[places], weight, counts, None)) < EXACT


@pytest.mark.parametrize("inputs", [72, 42])
@pytest.mark.parametrize("gated", [None, "gelu_tanh"])
def test_experts_of_odd_widths_are_multiplied_number_by_number(inputs: int, gated: Activation | None) -> None:
    counts = (5, 0, 12)
    weight = random_matrix("INT8", 3 * 22, inputs, torch.float32)
    x = torch.randn(17, inputs) / 16
    out = grouped_linear(x, weight, ends(counts), gated=gated)
    assert error(out, wanted(x, weight, counts, gated)) < EXACT


def test_fp8_meets_fp8_where_experts_have_many_rows() -> None:
    counts = (40, 0, 24)
    weight = random_matrix("FP8", 3 * 48, 96, torch.bfloat16)
    x = torch.randn(20, 96).bfloat16()
    places = torch.randint(0, 20, (64,))
    out = grouped_linear(x, weight, ends(counts), places=places)
    assert out.dtype == torch.bfloat16
    numbers, scales = fp8_rows(x)
    rounded = (numbers.double() * scales)[places]
    assert error(out, wanted(rounded, weight, counts, None)) < 4e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_widens_the_experts_that_have_rows(kind: str) -> None:
    weight = random_matrix(kind, len(UNEVEN) * 128, 288, torch.float32)
    x = torch.randn(sum(UNEVEN), 288)
    out = reference.grouped_linear(x, weight, ends(UNEVEN))
    assert error(out, wanted(x, weight, UNEVEN, None)) < 1e-6
