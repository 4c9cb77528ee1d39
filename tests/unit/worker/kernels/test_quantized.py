"""Kernels for quantized matrices under Triton's interpreter, against the reference in FP64."""

from __future__ import annotations

import pytest
import torch
from tests.unit.worker.kernels.paged import error
from tests.unit.worker.kernels.quantization import KINDS, random_matrix

from plimsoll_worker.kernels import dequantizing, quantized, quantized_row, quantized_tiles, reference
from plimsoll_worker.kernels.arranging import SUM_OF, arranged
from plimsoll_worker.kernels.fp8_rows import fp8_rows
from plimsoll_worker.kernels.matrix import dequantize
from plimsoll_worker.kernels.quantized import quantized_linear
from plimsoll_worker.kernels.quantized_row import row_linear
from plimsoll_worker.kernels.quantized_tiles import tile_linear
from plimsoll_worker.kernels.reference import Activation

EXACT = 1e-4
"""In FP32; a row's INT4 are multiplied with 2048 on top, which is then taken away."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [pytest.param(1024, 16, id="even"), pytest.param(288, 14, id="with a rest")]
)
class TestOneRow:
    def test_norm_and_bias(self, kind: str, inputs: int, outputs: int) -> None:
        weight = random_matrix(kind, outputs, inputs, torch.float32)
        x, factor, bias = torch.randn(1, inputs), torch.randn(inputs), torch.randn(outputs)
        out = row_linear(
            x, weight, bias, norm_weight=factor, eps=1e-5, offset=1.0, tiles=quantized_row.Tiles(4, 16, 1)
        )
        normed = reference.rms_norm(x.double(), factor.double(), 1e-5, offset=1.0)
        wanted = reference.linear(normed, dequantize(weight, torch.float64), bias.double())
        assert error(out, wanted) < EXACT

    def test_gate_and_up(self, kind: str, inputs: int, outputs: int) -> None:
        weight = random_matrix(kind, 2 * outputs, inputs, torch.float32)
        x, bias = torch.randn(1, inputs) / 64, torch.randn(2 * outputs)
        out = row_linear(x, weight, bias, gated="silu")
        both = reference.linear(x.double(), dequantize(weight, torch.float64), bias.double())
        assert error(out, reference.gated_activation(both, "silu")) < EXACT

    def test_residual_is_where_the_answer_lies(self, kind: str, inputs: int, outputs: int) -> None:
        weight = random_matrix(kind, outputs, inputs, torch.float32)
        x, residual = torch.randn(1, inputs), torch.randn(1, outputs)
        wanted = residual.double() + 0.5 * reference.linear(x.double(), dequantize(weight, torch.float64))
        out = row_linear(x, weight, residual=residual, scale=0.5)
        assert out is residual
        assert error(out, wanted) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "parts"),
    [
        pytest.param(16, 256, 64, 1, id="even"),
        pytest.param(5, 288, 40, 1, id="with a rest"),
        pytest.param(3, 1024, 72, 3, id="in parts"),
        pytest.param(37, 416, 24, 2, id="in bands and parts"),
    ],
)
class TestTiles:
    @staticmethod
    def tiles(parts: int) -> quantized_tiles.Tiles:
        return quantized_tiles.Tiles(32, 16, 128, parts, 4, 1)

    def test_bias(self, kind: str, rows: int, inputs: int, outputs: int, parts: int) -> None:
        weight = random_matrix(kind, outputs, inputs, torch.float32)
        x, bias = torch.randn(rows, inputs), torch.randn(outputs)
        wanted = reference.linear(x.double(), dequantize(weight, torch.float64), bias.double())
        assert error(tile_linear(x, weight, bias, tiles=self.tiles(parts)), wanted) < EXACT

    def test_gate_and_up(self, kind: str, rows: int, inputs: int, outputs: int, parts: int) -> None:
        weight = random_matrix(kind, 2 * outputs, inputs, torch.float32)
        x, bias = torch.randn(rows, inputs) / 64, torch.randn(2 * outputs)
        out = tile_linear(x, weight, bias, gated="gelu_tanh", tiles=self.tiles(parts))
        both = reference.linear(x.double(), dequantize(weight, torch.float64), bias.double())
        assert error(out, reference.gated_activation(both, "gelu_tanh")) < EXACT

    def test_residual_is_where_the_answer_lies(
        self, kind: str, rows: int, inputs: int, outputs: int, parts: int
    ) -> None:
        weight = random_matrix(kind, outputs, inputs, torch.float32)
        x, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
        wanted = residual.double() + 0.5 * reference.linear(x.double(), dequantize(weight, torch.float64))
        out = tile_linear(x, weight, residual=residual, scale=0.5, tiles=self.tiles(parts))
        assert out is residual
        assert error(out, wanted) < EXACT


@pytest.mark.parametrize("gated", [None, "silu"])
def test_a_program_of_one_row_takes_several_bands(gated: Activation | None) -> None:
    inputs, outputs = 1024, 32
    weight = random_matrix("INT4 group 128", 2 * outputs, inputs, torch.float32)
    x, factor = torch.randn(1, inputs), torch.randn(inputs) / 64
    tiles = quantized_row.Tiles(8, 32, 1, bands=2)
    out = row_linear(x, weight, norm_weight=factor, eps=1e-5, gated=gated, tiles=tiles)
    normed = reference.rms_norm(x.double(), factor.double(), 1e-5)
    wanted = reference.linear(normed, dequantize(weight, torch.float64))
    assert error(out, reference.gated_activation(wanted, gated) if gated else wanted) < EXACT


@pytest.mark.parametrize(
    ("inputs", "outputs", "gated", "tiles"),
    [
        pytest.param(
            4096, 28672, True, quantized_row.Tiles(4, 128, 4, 7), id="gate and up: all at work at once"
        ),
        pytest.param(4096, 6144, False, quantized_row.Tiles(16, 128, 4), id="few enough as they are"),
        pytest.param(14336, 4096, False, quantized_row.Tiles(8, 512, 16, 4), id="long rows"),
        pytest.param(576, 576, False, quantized_row.Tiles(16, 32, 1), id="a small model"),
        pytest.param(8192, 8192, False, quantized_row.Tiles(8, 128, 4), id="between short and long"),
    ],
)
def test_rows_of_int4_stay_in_registers_where_they_fit(
    inputs: int, outputs: int, gated: bool, tiles: quantized_row.Tiles
) -> None:
    weight = random_matrix("INT4 group 128", outputs, inputs, torch.bfloat16, "meta")
    assert quantized_row.tiles_for(weight, gated=gated, multiprocessors=132) == tiles


def test_two_steps_of_int4_may_be_read_at_once() -> None:
    weight = random_matrix("INT4 group 128", 40, 1024, torch.float32)
    x = torch.randn(5, 1024)
    tiles = quantized_tiles.Tiles(32, 16, 128, 3, 4, 1, spans=2)
    wanted = reference.linear(x.double(), dequantize(weight, torch.float64))
    assert error(tile_linear(x, weight, tiles=tiles), wanted) < EXACT


@pytest.mark.parametrize("norm", [False, True])
def test_columns_lie_in_the_order_in_which_masks_take_them(norm: bool) -> None:
    x, factor = torch.randn(2, 160), torch.randn(160)
    out, sums = arranged(x, step=128, word=2, int4=True, norm_weight=factor if norm else None, eps=1e-5)
    wanted = torch.zeros(2, 256)
    wanted[:, :160] = reference.rms_norm(x, factor, 1e-5) if norm else x
    # Of 16 bytes the even ones' low halves, the odd ones', then both high halves.
    by_turn = wanted.view(2, 2, 4, 2, 8, 2).permute(0, 1, 3, 5, 2, 4)
    assert torch.allclose(out, by_turn.reshape(2, 256), atol=1e-5)
    assert torch.allclose(sums.sum(0) * SUM_OF.value, wanted.view(2, 2, 128).sum(2), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [1, 3])
def test_many_rows_meet_the_same_weights(kind: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = 160, 140
    monkeypatch.setattr(dequantizing, "PIECE", 128 * inputs if pieces > 1 else 1 << 24)
    weight = random_matrix(kind, outputs, inputs, torch.float32)
    x, bias, residual = torch.randn(7, inputs), torch.randn(outputs), torch.randn(7, outputs)
    wanted = reference.linear(x.double(), dequantize(weight, torch.float64), bias.double())
    assert error(dequantizing.wide_linear(x, weight, bias, None, 1.0), wanted) < EXACT
    added = dequantizing.wide_linear(x, weight, bias, residual.clone(), 0.5)
    assert error(added, residual.double() + 0.5 * wanted) < EXACT


@pytest.mark.parametrize("normed", [False, True])
def test_activations_in_fp8_keep_three_bits_of_mantissa(normed: bool) -> None:
    x, factor = 10 * torch.randn(3, 72), torch.randn(72)
    x[1] = 0
    numbers, scales = fp8_rows(x, norm_weight=factor if normed else None, eps=1e-5)
    wanted = reference.rms_norm(x.double(), factor.double(), 1e-5) if normed else x.double()
    assert error(numbers.double() * scales, wanted) < 0.04
    assert numbers.double().abs().amax(1).tolist() == [448, 0, 448]


@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("kind", ["INT8", "INT4 group 128", "FP8 blocks"])
def test_any_number_of_rows_finds_its_kernel(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "WIDE_ROWS", 32)
    monkeypatch.setattr(quantized, "WIDE_ROWS_INT4", 32)
    inputs, outputs = 64, 32
    weight = random_matrix(kind, outputs, inputs, torch.float32)
    x, factor = torch.randn(rows, inputs), torch.randn(inputs)
    out = quantized_linear(x, weight, norm_weight=factor, eps=1e-5, gated="silu")
    normed = reference.rms_norm(x.double(), factor.double(), 1e-5)
    both = reference.linear(normed, dequantize(weight, torch.float64))
    assert error(out, reference.gated_activation(both, "silu")) < EXACT


def test_fp8_meets_fp8_where_rows_are_many() -> None:
    inputs, outputs, rows = 96, 48, 33
    weight = random_matrix("FP8", outputs, inputs, torch.bfloat16)
    x, bias = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    out = quantized_linear(x, weight, bias)
    assert out.dtype == torch.bfloat16
    numbers, scales = fp8_rows(x)
    rounded = numbers.double() * scales
    assert error(out, reference.linear(rounded, dequantize(weight, torch.float64), bias.double())) < 4e-3
