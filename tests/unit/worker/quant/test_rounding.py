"""Rounding against the same in FP64, number by number, and the errors that its steps allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.kernels.matrix import QuantizedMatrix, dequantize, rows_of, unpack_int4
from plimsoll_worker.launch import Precision
from plimsoll_worker.quant import rounding
from plimsoll_worker.quant.form import Form
from plimsoll_worker.quant.rounding import SHRINKS, round_int4, round_into

TYPES = [torch.float32, torch.bfloat16, torch.float16]
FP8_STEP = 2.0**-4
"""Half a step of three bits behind the point, as a share of the number."""


def weights(outputs: int, inputs: int, *, seed: int = 0) -> Tensor:
    """Rows of very different size, some with outliers."""
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(outputs, inputs, generator=made)
    rows[::5, ::17] *= 8
    return rows * torch.logspace(-3, 1, outputs)[:, None]


def rounded(precision: Precision, rows: Tensor, dtype: torch.dtype = torch.float32) -> QuantizedMatrix:
    form = Form.on_load(precision)
    assert form is not None
    target = form.make(*rows.shape, dtype, "cpu")
    round_into(target, rows)
    return target


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_int8_is_each_number_divided_by_its_rows_scale(dtype: torch.dtype) -> None:
    rows = weights(40, 100)
    found = rounded(Precision.INT8, rows, dtype)
    for row in range(40):
        scale = float((rows[row].abs().max() / 127).to(dtype))
        assert float(found.scales[row]) == scale
        for column in range(100):
            wanted = max(-127, min(127, round(float(rows[row, column]) / scale)))
            assert abs(int(found.numbers[row, column]) - wanted) <= (
                1 if abs(float(rows[row, column]) / scale % 1 - 0.5) < 1e-4 else 0
            )
    assert int(found.numbers.abs().max()) == 127


def test_fp8_takes_the_nearest_of_all_e4m3_numbers() -> None:
    rows = weights(12, 64)
    found = rounded(Precision.FP8, rows)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    codes = codes[codes.isfinite()]
    assert float(codes.max()) == rounding.FP8_MAX
    for row in range(12):
        scale = float(found.scales[row])
        assert scale >= float(rows[row].abs().max() / rounding.FP8_MAX) * (1 - 1e-6), "nothing is clipped"
        distance = (rows[row].double()[:, None] - scale * codes[None, :]).abs()
        error = (dequantize(found)[row].double() - rows[row].double()).abs()
        torch.testing.assert_close(error, distance.amin(1), atol=1e-6 * scale * 448, rtol=1e-4)


def test_fp8_takes_the_scale_whose_steps_fall_best_on_a_rows_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = weights(64, 1000)
    searched = (dequantize(rounded(Precision.FP8, rows)) - rows).square().mean(1)
    monkeypatch.setattr(rounding, "FP8_FACTORS", (1.0,))
    largest = (dequantize(rounded(Precision.FP8, rows)) - rows).square().mean(1)
    assert (searched / largest).mean() < 0.97
    assert (searched <= 1.0001 * largest).all()


@pytest.mark.parametrize("columns", [128, 256, 576, 96], ids=lambda count: f"{count} columns")
def test_int4_finds_the_least_error_of_all_it_tries(columns: int) -> None:
    """576 columns: four groups and a half, as in SmolLM2."""
    rows = weights(9, columns)
    error = (dequantize(rounded(Precision.INT4, rows)).double() - rows.double()).square()
    for first in range(0, columns, 128):
        group = rows[:, first : first + 128].double()
        low, high = group.amin(1), group.amax(1)
        tried = []
        for shrink in SHRINKS:
            scale = shrink * (high - low) / 15
            minimum = (low + high) / 2 - 7.5 * scale
            numbers = ((group - minimum[:, None]) / scale[:, None]).round().clamp(0, 15)
            tried.append((numbers * scale[:, None] + minimum[:, None] - group).square().sum(1))
        least = torch.stack(tried).amin(0)
        torch.testing.assert_close(error[:, first : first + 128].sum(1), least, rtol=1e-3, atol=0)


def test_the_clipping_search_loses_less_than_rounding_over_the_whole_range() -> None:
    rows = weights(64, 512)
    searched = (dequantize(rounded(Precision.INT4, rows)) - rows).square().mean(1)
    plain = rounded(Precision.INT4, rows)
    round_int4(plain, rows, shrinks=(1.0,))
    whole = (dequantize(plain) - rows).square().mean(1)
    assert (searched <= whole).all()
    assert searched.sum() < 0.95 * whole.sum()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, Precision.FP8])
def test_no_weight_is_further_off_than_half_a_step_unless_it_was_clipped(
    precision: Precision, dtype: torch.dtype
) -> None:
    rows = weights(32, 384)
    found = rounded(precision, rows, dtype)
    error = (dequantize(found, torch.float32) - rows).abs()
    if precision is Precision.FP8:
        assert (error <= FP8_STEP * rows.abs() + found.scales[:, None] * 2**-10).all()
        return
    steps = found.scales.float()
    if found.group:
        steps = steps.repeat_interleave(found.group, 1)
        numbers = unpack_int4(found.numbers)
        inside = (numbers > 0) & (numbers < 15)
    else:
        steps = steps[:, None].expand_as(rows)
        inside = found.numbers.abs() < 127
    assert (error[inside] <= 0.5001 * steps[inside]).all()
    assert inside.float().mean() > 0.8


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, Precision.FP8])
def test_rows_of_zeros_and_of_one_value_stay_what_they_are(precision: Precision) -> None:
    rows = torch.zeros(4, 128)
    rows[1] = 3.0
    rows[2] = -1e-30
    rows[3, 5] = 2.0
    assert torch.allclose(dequantize(rounded(precision, rows)), rows, rtol=2e-2, atol=0.07)
    assert torch.equal(dequantize(rounded(precision, rows))[0], rows[0])


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, Precision.FP8])
def test_rows_are_rounded_in_blocks_and_nothing_depends_on_where_they_end(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = weights(50, 160)
    whole = rounded(precision, rows)
    monkeypatch.setattr(rounding, "ELEMENTS_AT_ONCE", 7 * 160)
    blocks = rounded(precision, rows)
    assert torch.equal(whole.numbers.view(torch.uint8), blocks.numbers.view(torch.uint8))
    assert torch.equal(whole.scales, blocks.scales)


def test_a_region_is_a_view_of_its_rows() -> None:
    rows = weights(20, 64)
    form = Form.on_load(Precision.INT4)
    assert form is not None
    matrix = form.make(20, 64, torch.float32, "cpu")
    for first, last in ((0, 12), (12, 20)):
        round_into(rows_of(matrix, first, last), rows[first:last])
    assert torch.equal(dequantize(matrix), dequantize(rounded(Precision.INT4, rows)))


def test_what_int4_cannot_hold_is_refused_by_name() -> None:
    form = Form.on_load(Precision.INT4)
    assert form is not None
    form.check("layers.0.mlp.down_proj", 64, 96)
    with pytest.raises(ModelUnsupported, match=r"layers\.0\.mlp\.down_proj is 64 x 80: .*multiple of 32"):
        form.check("layers.0.mlp.down_proj", 64, 80)
