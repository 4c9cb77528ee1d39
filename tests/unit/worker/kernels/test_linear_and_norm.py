"""Norms, activations and the linears for few rows against the reference in FP64."""

from __future__ import annotations

import pytest
import torch
from tests.unit.worker.kernels.paged import error

from plimsoll_worker.kernels import few_rows, norm, reference
from plimsoll_worker.kernels.reference import Activation

EXACT = 2e-6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_rms_norm() -> None:
    x, weight = torch.randn(2, 3, 40), torch.randn(40)
    wanted = reference.rms_norm(x.double(), weight.double(), 1e-5, offset=1.0)
    assert error(norm.rms_norm(x, weight, 1e-5, offset=1.0), wanted) < EXACT


def test_norm_of_a_sum_gives_the_sum_too() -> None:
    x, residual, weight = torch.randn(3, 40), torch.randn(3, 40), torch.randn(40)
    normed, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    wanted, wanted_total = reference.add_rms_norm(x.double(), residual.double(), weight.double(), 1e-5)
    assert error(normed, wanted) < EXACT
    assert error(total, wanted_total) < EXACT


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gated_activation(kind: Activation) -> None:
    x = 3 * torch.randn(3, 80)
    assert error(norm.gated_activation(x, kind), reference.gated_activation(x.double(), kind)) < EXACT


@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [pytest.param(256, 64, id="even"), pytest.param(96, 70, id="with a rest")]
)
class TestFewRows:
    def test_norm_and_bias(self, rows: int, inputs: int, outputs: int) -> None:
        x, factor = torch.randn(rows, inputs), torch.randn(inputs)
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        out = few_rows.fused_linear(x, weight, bias, norm_weight=factor, eps=1e-5, offset=1.0)
        normed = reference.rms_norm(x.double(), factor.double(), 1e-5, offset=1.0)
        assert error(out, reference.linear(normed, weight.double(), bias.double())) < EXACT

    @pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
    def test_gate_and_up(self, rows: int, inputs: int, outputs: int, kind: Activation) -> None:
        x, weight, bias = (
            torch.randn(rows, inputs),
            torch.randn(2 * outputs, inputs) / 8,
            torch.randn(2 * outputs),
        )
        out = few_rows.fused_linear(x, weight, bias, gated=kind)
        both = reference.linear(x.double(), weight.double(), bias.double())
        assert error(out, reference.gated_activation(both, kind)) < EXACT

    def test_residual_is_where_the_answer_lies(self, rows: int, inputs: int, outputs: int) -> None:
        x, weight, residual = (
            torch.randn(rows, inputs),
            torch.randn(outputs, inputs),
            torch.randn(rows, outputs),
        )
        wanted = residual.double() + 0.5 * reference.linear(x.double(), weight.double())
        out = few_rows.fused_linear(x, weight, residual=residual, scale=0.5)
        assert out is residual
        assert error(out, wanted) < EXACT


@pytest.mark.parametrize("inputs", [256, 64])
def test_one_row_in_bf16(inputs: int) -> None:
    x, weight = torch.randn(1, inputs).bfloat16(), torch.randn(64, inputs).bfloat16()
    out = few_rows.fused_linear(x, weight, tiles=few_rows.Tiles(4, 64, 1))
    assert out.dtype == torch.bfloat16
    assert error(out, reference.linear(x.double(), weight.double())) < 4e-3


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs"), [(1, 4096), (1, 14336), (1, 3072), (1, 2304), (4, 4096), (16, 576), (4, 896)]
)
def test_steps_divide_the_width_of_usual_models(rows: int, inputs: int, gated: bool) -> None:
    assert inputs % few_rows.tiles_for(rows, inputs, 4096, gated=gated).block_k == 0
