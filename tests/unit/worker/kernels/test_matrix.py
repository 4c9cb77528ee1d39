"""What numbers and scales stand for, by the definition."""

from __future__ import annotations

import pytest
import torch
from tests.unit.worker.kernels.paged import error
from tests.unit.worker.kernels.quantization import KINDS, random_matrix

from plimsoll_worker.kernels import matrix, ops, reference
from plimsoll_worker.kernels.matrix import QuantizedMatrix, StackedMatrix, dequantize, pack_int4, unpack_int4
from plimsoll_worker.launch.precision import Precision


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def weight_at(kept: QuantizedMatrix, row: int, column: int) -> float:
    if kept.precision is Precision.INT4:
        assert kept.group is not None
        assert kept.minimums is not None
        block, place = divmod(column, 32)
        pair = int(kept.numbers[row, block * 16 + place % 16])
        number = pair & 15 if place < 16 else pair >> 4
        group = column // kept.group
        return number * float(kept.scales[row, group]) + float(kept.minimums[row, group])
    if kept.block_scaled:
        scale = kept.scales[row // 128, column // 128]
    else:
        scale = kept.scales[row] if kept.group is None else kept.scales[row, column // kept.group]
    return float(kept.numbers[row, column].float() * scale.float())


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_its_number_times_its_scale(kind: str) -> None:
    kept = random_matrix(kind, 130, 160, torch.float32)
    weights = dequantize(kept, torch.float64)
    assert weights.shape == kept.shape == (130, 160)
    for row in (0, 1, 127, 129):
        for column in (0, 15, 16, 31, 33, 127, 128, 159):
            assert float(weights[row, column]) == pytest.approx(weight_at(kept, row, column), rel=1e-6)


def test_numbers_of_four_bits_are_found_again() -> None:
    numbers = torch.randint(0, 16, (3, 96))
    assert pack_int4(numbers).shape == (3, 48)
    assert torch.equal(unpack_int4(pack_int4(numbers)).long(), numbers)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("INT8", 8), ("INT8 group 32", 8.5), ("INT8 group 16", 9), ("INT4 group 128", 4.25), ("FP8", 8)],
)
def test_bytes_are_those_of_numbers_and_scales(kind: str, bits: float) -> None:
    kept = random_matrix(kind, 512, 1024, torch.bfloat16)
    scales = 0 if kept.group else kept.scales.nbytes
    assert kept.nbytes == 512 * 1024 * bits / 8 + scales


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows_at_once", [64, 1024])
def test_the_reference_multiplies_with_the_weights(
    kind: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "ROWS_AT_ONCE", rows_at_once)
    kept, x, bias = random_matrix(kind, 130, 160, torch.float32), torch.randn(3, 160), torch.randn(130)
    wanted = reference.linear(x.double(), dequantize(kept, torch.float64), bias.double())
    assert error(ops.linear(x, kept, bias), wanted) < 1e-6
    residual = torch.randn(3, 130)
    added = ops.linear_add(x, kept, residual, bias, scale=0.5)
    assert error(added, residual.double() + 0.5 * wanted) < 1e-6


@pytest.mark.parametrize("bias", [None, torch.randn(130)], ids=["no bias", "bias"])
def test_stacked_matrices_are_multiplied_each_by_itself(bias: torch.Tensor | None) -> None:
    parts = (
        random_matrix("INT4 group 32", 64, 160, torch.float32),
        torch.randn(36, 160),
        random_matrix("INT8 group 16", 30, 160, torch.float32),
    )
    whole = torch.cat([part if isinstance(part, torch.Tensor) else dequantize(part) for part in parts])
    x, factor, stacked = torch.randn(3, 160), torch.randn(160), StackedMatrix(parts)
    wanted = reference.linear(x, whole, bias)
    assert error(ops.linear(x, stacked, bias), wanted.double()) < 1e-6
    residual = torch.randn(3, 130)
    assert error(ops.linear_add(x, stacked, residual, bias), (residual + wanted).double()) < 1e-6
    gated = ops.norm_gate_up(x, factor, 1e-5, stacked, "silu", bias)
    assert error(gated, ops.norm_gate_up(x, factor, 1e-5, whole, "silu", bias).double()) < 1e-6
