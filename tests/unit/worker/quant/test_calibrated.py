"""Checkpoints that `python -m plimsoll_worker.quantize` writes: loaded as they are stored, closer to the
original than rounding to nearest, and refused with a reason where they cannot be made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from dev.hub.smollm2 import smollm2_gguf
from tests.unit.worker.quant import packers
from tests.unit.worker.quant.test_stored import SHAPE, written
from tests.unit.worker.test_models import saved
from torch import Tensor

from plimsoll.model.read import read_facts
from plimsoll.sizing.schemes import Stored
from plimsoll.sizing.weights import loaded_bytes
from plimsoll.sources import open_source
from plimsoll_worker.kernels.matrix import dequantize
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model, quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.compressed import Scheme, pack_words
from plimsoll_worker.quant.error_feedback import round_with_feedback
from plimsoll_worker.quant.grids import Grid
from plimsoll_worker.quantize import words
from plimsoll_worker.quantize.__main__ import main
from plimsoll_worker.quantize.layers import Given, answer, rounded_layers

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")
SCHEMES = {
    "INT4": Scheme(Precision.INT4, 64),
    "INT8": Scheme(Precision.INT8),
    "FP8": Scheme(Precision.FP8),
}


def loaded(folder: Path) -> Decoder:
    return load_model(open_checkpoint(folder), device=CPU, precision=Precision.FP32)


def told(model: Path, weights: str, out: Path) -> list[str]:
    """Arguments of the command."""
    return ["--model", str(model), "--weights", weights, "--out", str(out), "--device", "cpu"]


def correlated(inputs: int, *, seed: int = 0) -> Tensor:
    """(512, inputs) whose columns go together, some of them large."""
    made = torch.Generator().manual_seed(seed)
    mixed = torch.randn(512, inputs // 4, generator=made) @ torch.randn(inputs // 4, inputs, generator=made)
    mixed[:, ::19] *= 6
    return mixed + 0.2 * torch.randn(512, inputs, generator=made)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_handing_errors_on_answers_closer_than_rounding_to_nearest(scheme: Scheme) -> None:
    x = correlated(192)
    weights = torch.randn(48, 192, generator=torch.Generator().manual_seed(1))
    grid = scheme.grid(weights, x.square().mean(0))
    everywhere = torch.arange(192)
    nearest = grid.nearest(weights, everywhere)
    fed = round_with_feedback(weights, x.t() @ x, grid, 51200)
    assert torch.equal(grid.nearest(fed, everywhere), fed), "values of the grid, all of them"
    exact = x @ weights.t()
    errors = [(x @ values.t() - exact).norm() for values in (fed, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_inputs_that_do_not_go_together_have_nothing_to_hand_on() -> None:
    weights = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    grid = SCHEMES["INT4"].grid(weights, torch.ones(64))
    fed = round_with_feedback(weights, torch.diag(torch.linspace(1, 3, 64)), grid, 64)
    torch.testing.assert_close(fed, grid.nearest(weights, torch.arange(64)))


def test_columns_whose_inputs_are_always_zero_do_no_harm() -> None:
    x = correlated(64)
    x[:, 5] = 0
    weights = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    scheme = SCHEMES["INT4"]
    found = round_with_feedback(weights, x.t() @ x, scheme.grid(weights, x.square().mean(0)), 512)
    assert found.isfinite().all()
    assert (found[:, 5] - weights[:, 5]).abs().max() < weights.abs().max() / 4


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_packed_as_compressed_tensors_does(bits: int) -> None:
    numbers = torch.randint(2**bits, (5, 24), generator=torch.Generator().manual_seed(4))
    assert torch.equal(pack_words(numbers, bits), packers.words(numbers.tolist(), bits))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_written_checkpoint_is_what_was_rounded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "WINDOW", 32)
    model, out = tmp_path / "model", tmp_path / "out"
    saved("Llama", SHAPE, model)
    assert main([*told(model, name, out), "--tokens", "256", "--group", "64"]) == 0
    ours, checkpoint = loaded(out), open_checkpoint(model)
    said = words.own_words(checkpoint, 256, CPU)
    assert [len(text) for text in said] == [32] * 8
    layers = list(rounded_layers(checkpoint, said, SCHEMES[name].grid, CPU))
    assert sum(map(len, layers)) == len(quantizable(ours))
    for layer in layers:
        for module, rounded in layer.items():
            matrix = quantizable(ours)[module].quantized
            assert matrix is not None
            assert matrix.precision is SCHEMES[name].precision
            torch.testing.assert_close(dequantize(matrix), rounded.values, rtol=1e-6, atol=1e-6)
    facts = read_facts(open_source(str(out)))
    assert facts.quantization == "compressed-tensors"
    assert loaded_bytes(facts, Stored(Precision.FP32)) == ours.weight_bytes


REFUSED = {
    "columns that no group divides": (["--group", "31"], r"columns: no group of a multiple of 32 up to 31"),
    "a folder that is not empty": (["--out", "{model}"], r"model: not empty; name a folder"),
    "a text that is not there": (["--text", "{model}/none"], r"model/none: "),
    "a model that is not there": (["--model", "{model}/none"], r"model/none: no such file or folder"),
}


@pytest.mark.parametrize(("changes", "answer"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    changes: list[str], answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    saved("Llama", SHAPE, model)
    assert main([*told(model, "INT4", out), *(each.format(model=model) for each in changes)]) == 2
    assert re.search(answer, capsys.readouterr().err)
    assert not out.exists()


def test_a_quantized_checkpoint_is_not_quantized_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(packers.gptq(64, symmetric=True), tmp_path / "model")
    assert main(told(tmp_path / "model", "INT8", tmp_path / "out")) == 2
    assert re.search(r"quantized already \(gptq\); use the original model", capsys.readouterr().err)


def test_a_layer_of_a_real_model_loses_less_on_a_text_that_it_was_not_calibrated_on() -> None:
    """Two windows of Markdown against one of prose: as little as a calibration can be."""
    checkpoint = open_checkpoint(smollm2_gguf())
    calibration = (ROOT / "README.md").read_text(encoding="utf-8")
    originals: list[Tensor] = []

    def choose(weights: Tensor, importance: Tensor) -> Grid:
        originals.append(weights.clone())
        return SCHEMES["INT4"].grid(weights, importance)

    windows = words.words_of(checkpoint, calibration, 2 * words.WINDOW)
    layer = next(rounded_layers(checkpoint, windows, choose, CPU))
    first = Position(first=0, last=1, stage=0, stages=checkpoint.config.layer_count)
    model = load_model(checkpoint, device=CPU, precision=Precision.FP32, position=first)
    other = checkpoint.tokenizer().encode((ROOT / "tests/data/prose.txt").read_text(encoding="utf-8"))
    with Given(model) as given:
        answer(model, torch.tensor(other[: words.WINDOW]))
    for (name, rounded), weights in zip(layer.items(), originals, strict=True):
        by_weights_alone = SCHEMES["INT4"].grid(weights, torch.ones(weights.shape[1]))
        nearest = by_weights_alone.nearest(weights, torch.arange(weights.shape[1]))
        fed, plain = (
            ((values - weights) @ given.moments[name] * (values - weights)).sum()
            for values in (rounded.values, nearest)
        )
        assert fed < (0.6 if name.endswith("qkv_proj") else 1.0) * plain, name
