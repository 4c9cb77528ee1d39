"""Experts in fewer bits: however files hold them and ranks cut them, they become the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.worker.parallel.test_tensor import PROMPTS, greedy
from tests.unit.worker.parallel.threads import ThreadRank, side_by_side
from tests.unit.worker.quant.test_on_load import CPU, QWEN3_MOE, ROUNDED, loaded
from tests.unit.worker.test_gguf_families import converted
from tests.unit.worker.test_models import SMALL, configuration, opened, saved

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.kernels import expert_tiles, ops
from plimsoll_worker.kernels.matrix import dequantize
from plimsoll_worker.launch import Precision
from plimsoll_worker.layers import experts
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model, quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.form import Form
from plimsoll_worker.settings import LoadFormat

EXPERTS = ("layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj")
EVEN = {**QWEN3_MOE, "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 256,
        "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip
"""Whole groups on each of two ranks."""


def loaded_rank(folder: Path, matrices: Precision, rank: int) -> Decoder:
    """One of two."""
    return load_model(
        open_checkpoint(folder),
        device=CPU,
        precision=Precision.FP32,
        matrices=matrices,
        position=Position(first=0, last=3, rank=rank, ranks=2),
    )


def numbers(model: Decoder, name: str) -> torch.Tensor:
    """What the experts' matrices stand for, (experts, outputs, inputs)."""
    matrix = quantizable(model)[name].quantized
    assert matrix is not None
    return dequantize(matrix).view(6, -1, matrix.inputs)


def assert_same_numbers(one: Decoder, other: Decoder) -> None:
    for (name, ours), (same, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), name


@pytest.mark.parametrize("matrices", ROUNDED)
def test_files_that_hold_experts_together_become_the_same_numbers(
    matrices: Precision, tmp_path: Path
) -> None:
    theirs = saved("Qwen3Moe", QWEN3_MOE, tmp_path)
    separate = loaded(tmp_path, matrices)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    names = open_checkpoint(tmp_path).names()
    assert EXPERTS[0] in names
    assert_same_numbers(loaded(tmp_path, matrices), separate)


def test_a_gguf_files_experts_are_rounded_like_any_others(tmp_path: Path) -> None:
    changes = {**QWEN3_MOE, "mlp_only_layers": [], "decoder_sparse_step": 1}
    theirs = saved("Qwen3Moe", changes, tmp_path)
    converted("Qwen3Moe", theirs, tmp_path / "model.gguf")
    ours, expected = (loaded(path, Precision.INT8) for path in (tmp_path / "model.gguf", tmp_path))
    assert_same_numbers(ours, expected)


def test_random_experts_are_the_same_numbers_however_they_are_cut(tmp_path: Path) -> None:
    configuration("Qwen3Moe")(**{**SMALL, **EVEN}).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, LoadFormat.DUMMY)
    whole = load_model(checkpoint, device=CPU, precision=Precision.FP32)
    weights = whole.get_parameter(f"{EXPERTS[1]}.weight")
    assert not torch.equal(weights[0], weights[1])
    rank = Position(first=0, last=3, rank=1, ranks=2)
    mine = load_model(checkpoint, device=CPU, precision=Precision.FP32, position=rank)
    assert torch.equal(mine.get_parameter(f"{EXPERTS[1]}.weight"), weights[..., 128:])


@pytest.mark.parametrize("matrices", ROUNDED)
def test_a_rank_has_its_rows_of_every_expert(matrices: Precision, tmp_path: Path) -> None:
    saved("Qwen3Moe", EVEN, tmp_path)
    whole = numbers(loaded(tmp_path, matrices), EXPERTS[0])
    for rank in range(2):
        mine = numbers(loaded_rank(tmp_path, matrices, rank), EXPERTS[0])
        rows = slice(128 * rank, 128 * rank + 128)
        assert torch.equal(mine, torch.cat((whole[:, :256][:, rows], whole[:, 256:][:, rows]), dim=1))


def test_ranks_answer_as_one_where_they_have_whole_groups(tmp_path: Path) -> None:
    saved("Qwen3Moe", EVEN, tmp_path)
    whole = loaded(tmp_path, Precision.INT4)
    expected, logits = greedy(whole, PROMPTS, 4)

    def answer(ranks: ThreadRank, rank: int) -> tuple[list[int], torch.Tensor]:
        model = loaded_rank(tmp_path, Precision.INT4, rank)
        model.ranks = ranks
        columns = slice(128 * rank, 128 * rank + 128)
        assert torch.equal(numbers(model, EXPERTS[1]), numbers(whole, EXPERTS[1])[..., columns])
        return greedy(model, PROMPTS, 4)

    for tokens, mine in side_by_side(2, answer):
        assert tokens == expected
        torch.testing.assert_close(mine, logits, rtol=1e-4, atol=1e-4)


def test_ranks_that_cut_a_group_of_an_expert_are_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    saved("Qwen3Moe", {**EVEN, "moe_intermediate_size": 192}, tmp_path)
    told = r"experts\.0\.down_proj\.weight: columns 0 to 96 of a rank cut a group of 128"
    with pytest.raises(ModelUnsupported, match=told):
        loaded_rank(tmp_path, Precision.INT4, 0)


def test_experts_that_begin_inside_a_block_of_scales_are_refused() -> None:
    blocks = Form(Precision.FP8, in_blocks=True)
    blocks.check("a dense matrix", 320, 256)
    with pytest.raises(ModelUnsupported, match=r"experts\.down_proj is 4 experts of 320 x 256: they begin"):
        blocks.check("layers.0.mlp.experts.down_proj", 320, 256, count=4)


def test_answers_of_experts_are_summed_alike_however_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("Qwen3Moe", EVEN, tmp_path)
    layer = opened(tmp_path).layers["1"]
    x = torch.randn(37, 128, generator=torch.Generator().manual_seed(3))
    expected = layer.mlp(x, layer.post_attention_layernorm)
    monkeypatch.setattr(experts, "SUMMED_AT_ONCE", 1)
    assert torch.equal(layer.mlp(x, layer.post_attention_layernorm), expected)


@pytest.mark.parametrize("matrices", ROUNDED)
def test_a_card_computes_what_the_reference_does(
    matrices: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Triton's interpreter."""
    saved("Qwen3Moe", EVEN, tmp_path)
    model = loaded(tmp_path, matrices)
    sparse, norm = model.layers["1"].mlp, model.layers["1"].post_attention_layernorm
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(3))
    expected = sparse(x, norm)
    calls = []
    grouped = expert_tiles.grouped_linear
    monkeypatch.setattr(expert_tiles, "grouped_linear", lambda *a, **k: calls.append(1) or grouped(*a, **k))
    monkeypatch.setattr(ops, "on_gpu", lambda _: True)
    torch.testing.assert_close(sparse(x, norm), expected, rtol=1e-3, atol=1e-3)
    assert len(calls) == 2
