"""Models whose matrices are rounded while they are read: what they answer, and the bytes they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.unit.worker.test_models import CASES, assert_same_answers, saved
from tests.unit.worker.test_models import reference as answers_of

from plimsoll.model.read import read_facts
from plimsoll.sizing.schemes import SCHEMES, Quantized
from plimsoll.sizing.weights import loaded_bytes
from plimsoll.sources import open_source
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.kernels.matrix import dequantize
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading import weights
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model, quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.form import Form

CPU = torch.device("cpu")
ROUNDED = [Precision.INT8, Precision.INT4, Precision.FP8]
WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "head_dim": 32}
"""Columns in multiples of 32, and not all of 128."""
MIXTRAL = {**WIDE, **CASES["mixtral"][1]}
QWEN3_MOE = {
    **WIDE, **CASES["qwen3_moe, some layers dense"][1], "moe_intermediate_size": 64, "head_dim": 32
}  # fmt: skip


def loaded(folder: Path, matrices: Precision, precision: Precision = Precision.FP32) -> Decoder:
    return load_model(open_checkpoint(folder), device=CPU, precision=precision, matrices=matrices)


def with_rounded_weights(theirs: torch.nn.Module, ours: Decoder) -> None:
    """Give transformers' model the weights that ours was rounded to."""
    layers = theirs.model.layers
    for name, linear in quantizable(ours).items():
        assert linear.quantized is not None
        _, number, block, *_, module = name.split(".")
        rows = dequantize(linear.quantized, torch.float32)
        if ".experts." in name:
            weight = getattr(layers[int(number)].mlp.experts, module)
            weight.data = rows.view(weight.shape)
            continue
        parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        for part in parts.get(module, (module,)):
            weight = getattr(getattr(layers[int(number)], block), part).weight
            weight.data, rows = rows[: weight.shape[0]].clone(), rows[weight.shape[0] :]
        assert not len(rows)


@pytest.mark.parametrize("matrices", ROUNDED)
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("Llama", WIDE), ("Qwen2", WIDE), ("Gemma2", WIDE), ("Mixtral", MIXTRAL), ("Qwen3Moe", QWEN3_MOE)],
    ids=["Llama", "Qwen2", "Gemma2", "Mixtral", "Qwen3Moe"],
)
def test_answers_are_those_of_the_rounded_weights(
    kind: str, changes: Mapping[str, object], matrices: Precision, tmp_path: Path
) -> None:
    theirs = saved(kind, {**changes, "pad_token_id": None}, tmp_path)
    ours = loaded(tmp_path, matrices)
    with_rounded_weights(theirs, ours)
    text, logits = answers_of(theirs)
    assert_same_answers(ours, text, logits, max_batched_tokens=5)


@pytest.mark.parametrize("matrices", ROUNDED)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", WIDE),
        ("Llama", {**WIDE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Mixtral", MIXTRAL),
        ("Qwen3Moe", QWEN3_MOE),
    ],
    ids=["llama", "tied, with biases", "mixtral", "qwen3_moe, some layers dense"],
)
def test_the_operator_counts_the_bytes_that_the_engine_keeps(
    kind: str, changes: Mapping[str, object], matrices: Precision, precision: Precision, tmp_path: Path
) -> None:
    saved(kind, changes, tmp_path)
    facts = read_facts(open_source(str(tmp_path)))
    kept = Quantized(SCHEMES[matrices], precision)
    assert loaded_bytes(facts, kept) == loaded(tmp_path, matrices, precision).weight_bytes


def test_router_head_and_embedding_stay_as_they_are(tmp_path: Path) -> None:
    saved("Mixtral", MIXTRAL, tmp_path)
    ours = loaded(tmp_path, Precision.INT8)
    kept = {name for name, parameter in ours.named_parameters() if parameter.dtype == torch.float32}
    assert {"embed_tokens.weight", "lm_head.weight", "layers.0.mlp.gate.weight"} <= kept
    parts = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    assert set(quantizable(ours)) == {f"layers.{layer}.{part}" for layer in range(3) for part in parts}
    assert all(matrix.quantized for matrix in quantizable(ours).values())


@pytest.mark.parametrize("matrices", ROUNDED)
def test_rows_are_read_in_blocks_and_no_matrix_is_held_unrounded(
    matrices: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("Llama", WIDE, tmp_path)
    whole = loaded(tmp_path, matrices)
    monkeypatch.setattr(weights, "SCRATCH_BYTES", 5 * 96 * 4)
    held = 0
    rounding = weights.round_into

    def seen(target: object, rows: torch.Tensor) -> None:
        nonlocal held
        held = max(held, rows.nbytes)
        rounding(target, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "round_into", seen)
    blocks = loaded(tmp_path, matrices)
    assert 0 < held <= 5 * 96 * 4
    for (name, one), other in zip(whole.named_parameters(), blocks.parameters(), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


def test_a_matrix_that_int4_cannot_hold_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    saved("Llama", {**WIDE, "intermediate_size": 80}, tmp_path)
    with pytest.raises(ModelUnsupported, match=r"layers\.0\.mlp\.down_proj is 96 x 80: INT4"):
        loaded(tmp_path, Precision.INT4)


@pytest.mark.parametrize(
    ("form", "columns", "rows", "told"),
    [
        (Form(Precision.INT4, group=128), (64, 128), None, r"columns 64 to 128 of a rank cut a group of 128"),
        (
            Form(Precision.FP8, in_blocks=True),
            (64, 128),
            None,
            r"columns 64 to 128 of a rank cut a group of 128",
        ),
        (
            Form(Precision.FP8, in_blocks=True),
            None,
            (64, 192),
            r"rows 64 to 192 of a matrix begin inside a block",
        ),
        (Form(Precision.INT4, group=32), (64, 128), (64, 192), None),
        (Form(Precision.INT8), (1, 2), (3, 4), None),
    ],
    ids=["INT4", "FP8 in blocks", "rows of blocks", "groups of 32", "INT8"],
)
def test_a_cut_through_numbers_that_share_a_scale_is_refused(
    form: Form, columns: tuple[int, int] | None, rows: tuple[int, int] | None, told: str | None
) -> None:
    if told is None:
        form.check_cut("layers.0.mlp.down_proj", columns=columns, rows=(None, rows))
        return
    with pytest.raises(ModelUnsupported, match=rf"layers\.0\.mlp\.down_proj: {told}"):
        form.check_cut("layers.0.mlp.down_proj", columns=columns, rows=(None, rows))


@pytest.mark.parametrize("matrices", [Precision.INT8, Precision.INT4])
def test_a_rank_rounds_what_it_reads_as_the_whole_model_would(matrices: Precision, tmp_path: Path) -> None:
    saved("Llama", {**WIDE, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8,
                    "num_key_value_heads": 2}, tmp_path)  # fmt: skip
    checkpoint = open_checkpoint(tmp_path)
    whole = quantizable(loaded(tmp_path, matrices))["layers.0.self_attn.qkv_proj"].quantized
    assert whole is not None
    expected = dequantize(whole)
    for rank in range(2):
        position = Position(first=0, last=3, rank=rank, ranks=2)
        mine = load_model(
            checkpoint, device=CPU, precision=Precision.FP32, matrices=matrices, position=position
        )
        held = quantizable(mine)["layers.0.self_attn.qkv_proj"].quantized
        assert held is not None
        rows = [*range(128 * rank, 128 * rank + 128), *range(256 + 32 * rank, 288 + 32 * rank),
                *range(320 + 32 * rank, 352 + 32 * rank)]  # fmt: skip
        assert torch.equal(dequantize(held), expected[rows])
