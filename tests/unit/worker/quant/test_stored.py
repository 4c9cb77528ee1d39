"""Quantized checkpoints: packed by the formats' descriptions, loaded as they are stored, answered as by the
weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.worker.quant import packers
from tests.unit.worker.quant.packers import Packer
from tests.unit.worker.test_models import PROMPT, assert_same_answers, saved
from tests.unit.worker.test_models import reference as answers_of

from plimsoll.model.read import read_facts
from plimsoll.sizing.schemes import Stored
from plimsoll.sizing.weights import loaded_bytes
from plimsoll.sources import open_source
from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.kernels.matrix import dequantize
from plimsoll_worker.launch import CAPABILITIES, Device, Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model, quantizable
from plimsoll_worker.models.decoder import Decoder

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
FORMATS = {
    "gptq, groups of 128": packers.gptq(128, symmetric=True),
    "gptq, groups of 64, zero points": packers.gptq(64, symmetric=False),
    "gptq, groups of 32, version 2": packers.gptq(32, symmetric=False, version="gptq_v2"),
    "gptq, a scale a row": packers.gptq(-1, symmetric=True),
    "awq": packers.awq(64),
    "compressed-tensors, 4 bits in groups": packers.pack_quantized(4, 64),
    "compressed-tensors, 4 bits with zero points": packers.pack_quantized(4, 32, symmetric=False),
    "compressed-tensors, 8 bits a row": packers.pack_quantized(8, None),
    "compressed-tensors, FP8 a row": packers.float_quantized("channel"),
    "compressed-tensors, FP8 with one scale": packers.float_quantized("tensor"),
    "compressed-tensors, INT8": packers.int_quantized(),
    "fp8 in blocks": packers.fp8_blocks(),
}


def written(packer: Packer, folder: Path, kind: str = "Llama", **changes: Any) -> Any:
    """A random model packed in `folder`; transformers' model with the weights that it stands for."""
    theirs = saved(kind, {**SHAPE, **changes}, folder)
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        packed, means = packer.pack(tensors.pop(name))
        tensors |= {name.removesuffix(".weight") + end: part.contiguous() for end, part in packed.items()}
        theirs.get_parameter(name).data = means.float()
    for name in [name for name in tensors if ".mlp.experts." in name]:
        del tensors[name]
        for module, weight in experts_of(name, theirs):
            packed, means = packer.pack(weight)
            tensors |= {module + end: part.contiguous() for end, part in packed.items()}
            weight.copy_(means)
    if kind == "Mixtral":
        tensors = {name.replace(".mlp.", ".block_sparse_moe."): part for name, part in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    configure(folder, {"quantization_config": packer.config})
    return theirs


def experts_of(name: str, theirs: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names in a checkpoint of the modules that transformers stacks in the parameter `name`, and their rows
    of the parameter itself."""
    stem, _, leaf = name.rpartition(".")
    mixtral = theirs.config.model_type == "mixtral"
    own = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
    for expert, matrix in enumerate(theirs.get_parameter(name).data):
        for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
            yield f"{stem}.{expert}.{own[part] if mixtral else part}", rows


def configure(folder: Path, changes: Mapping[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def opened(folder: Path) -> Decoder:
    return load_model(open_checkpoint(folder), device=torch.device("cpu"), precision=Precision.FP32)


@pytest.mark.parametrize("packer", FORMATS.values(), ids=FORMATS.keys())
def test_a_quantized_checkpoint_answers_as_the_weights_it_stands_for(packer: Packer, tmp_path: Path) -> None:
    theirs = written(packer, tmp_path)
    ours = opened(tmp_path)
    for name, linear in quantizable(ours).items():
        assert linear.quantized is not None, name
        if name.endswith(("o_proj", "down_proj")):
            torch.testing.assert_close(
                dequantize(linear.quantized),
                theirs.get_parameter(f"model.{name}.weight"),
                rtol=1e-6,
                atol=1e-6,
            )
    text, logits = answers_of(theirs, length=PROMPT + 6)
    assert_same_answers(ours, text, logits, max_batched_tokens=64)
    facts = read_facts(open_source(str(tmp_path)))
    assert facts.quantization in CAPABILITIES.checkpoints[Device.CPU]
    assert facts.packed is not None
    assert loaded_bytes(facts, Stored(Precision.FP32)) == ours.weight_bytes
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.stored is not None
    assert checkpoint.stored.format == facts.quantization
    assert not checkpoint.stored.optional


GPTQ = packers.gptq(64, symmetric=True)
MIXTURES = {
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 128},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 32},
}
OF_EXPERTS = {
    "gptq": packers.gptq(64, symmetric=False),
    "awq": packers.awq(64),
    "compressed-tensors, 4 bits": packers.pack_quantized(4, 64),
    "compressed-tensors, FP8 a row": packers.float_quantized("channel"),
    "compressed-tensors, INT8": packers.int_quantized(),
    "fp8 in blocks": packers.fp8_blocks(),
}


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("packer", OF_EXPERTS.values(), ids=OF_EXPERTS.keys())
def test_packed_experts_answer_as_the_weights_they_stand_for(
    packer: Packer, kind: str, tmp_path: Path
) -> None:
    theirs = written(packer, tmp_path, kind, num_hidden_layers=1, **MIXTURES[kind])
    ours = opened(tmp_path)
    assert all(matrix.quantized for matrix in quantizable(ours).values())
    text, logits = answers_of(theirs, length=PROMPT + 6)
    assert_same_answers(ours, text, logits, max_batched_tokens=64)
    facts = read_facts(open_source(str(tmp_path)))
    assert facts.packed is not None
    assert loaded_bytes(facts, Stored(Precision.FP32)) == ours.weight_bytes


def test_experts_of_which_a_quantizer_skipped_some_are_refused(tmp_path: Path) -> None:
    theirs = written(GPTQ, tmp_path, "Qwen3Moe", num_hidden_layers=1, **MIXTURES["Qwen3Moe"])
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    skipped = "model.layers.0.mlp.experts.2.down_proj"
    for name in [name for name in tensors if name.startswith(f"{skipped}.")]:
        del tensors[name]
    weight = theirs.get_parameter("model.layers.0.mlp.experts.down_proj")[2]
    save_file({**tensors, f"{skipped}.weight": weight.clone()}, tmp_path / "model.safetensors")
    told = r"experts\.2\.down_proj\.weight is kept in another form than layers\.0\.mlp\.experts\.0\.down_proj"
    with pytest.raises(ModelUnsupported, match=told):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("module", "kept"),
    [("mlp.down_proj", "mlp.down_proj"), ("self_attn.v_proj", "self_attn.qkv_proj.part1")],
)
def test_modules_that_a_quantizer_skipped_stay_as_they_are(module: str, kept: str, tmp_path: Path) -> None:
    packer = packers.gptq(64, symmetric=True)
    theirs = written(packer, tmp_path)
    plain = saved("Llama", SHAPE, tmp_path / "plain").state_dict()
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    skipped = f"model.layers.1.{module}"
    for name in [name for name in tensors if name.startswith(f"{skipped}.")]:
        del tensors[name]
    tensors[f"{skipped}.weight"] = plain[f"{skipped}.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    theirs.get_parameter(f"{skipped}.weight").data = plain[f"{skipped}.weight"].clone()
    ours = opened(tmp_path)
    assert quantizable(ours)[f"layers.1.{kept}"].quantized is None
    text, logits = answers_of(theirs, length=PROMPT + 6)
    assert_same_answers(ours, text, logits, max_batched_tokens=64)
    assert loaded_bytes(read_facts(open_source(str(tmp_path))), Stored(Precision.FP32)) == ours.weight_bytes


REFUSED: dict[str, tuple[Packer, Mapping[str, Any], str]] = {
    "a method": (
        GPTQ,
        {"quant_method": "bitsandbytes"},
        r"quant_method is 'bitsandbytes': this engine loads",
    ),
    "bits": (GPTQ, {"bits": 3}, r"quantization_config\.bits is 3"),
    "reordered columns": (GPTQ, {"desc_act": True}, r"quantization_config\.desc_act is True"),
    "a version of gptq": (GPTQ, {"checkpoint_format": "marlin"}, r"checkpoint_format is 'marlin'"),
    "a layout of awq": (packers.awq(64), {"version": "gemv"}, r"version is 'gemv'"),
    "blocks": (packers.fp8_blocks(), {"weight_block_size": [64, 64]}, r"weight_block_size is \[64, 64\]"),
    "a layout of compressed-tensors": (
        packers.pack_quantized(4, 64),
        {"format": "nvfp4-pack-quantized"},
        r"quantization_config\.format is 'nvfp4-pack-quantized'",
    ),
    "groups of 8-bit numbers": (packers.pack_quantized(8, 64), {}, r"expected|8-bit numbers in groups"),
}


@pytest.mark.parametrize(("packer", "changes", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_exact_form_is_refused_before_a_weight_is_read(
    packer: Packer, changes: Mapping[str, Any], told: str, tmp_path: Path
) -> None:
    written(packer, tmp_path)
    configure(tmp_path, {"quantization_config": {**packer.config, **changes}})
    with pytest.raises(ModelUnsupported, match=told):
        open_checkpoint(tmp_path)


def test_columns_that_are_reordered_all_the_same_are_refused(tmp_path: Path) -> None:
    def shuffled(weight: torch.Tensor) -> packers.Packed:
        packed, means = GPTQ.pack(weight)
        return {**packed, ".g_idx": packed[".g_idx"].flip(0)}, means

    written(Packer(GPTQ.config, shuffled), tmp_path)
    with pytest.raises(ModelUnsupported, match=r"columns reordered by g_idx"):
        opened(tmp_path)


def test_a_configuration_that_speaks_of_packed_matrices_where_there_are_none_is_told(tmp_path: Path) -> None:
    saved("Llama", SHAPE, tmp_path)
    configure(tmp_path, {"quantization_config": GPTQ.config})
    with pytest.raises(ModelUnreadable, match=r"speaks of gptq, and no tensor \*\.qweight is packed so"):
        open_checkpoint(tmp_path)


def test_a_matrix_without_its_scales_is_told(tmp_path: Path) -> None:
    written(GPTQ, tmp_path)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelUnreadable, match=r"layers\.0\.mlp\.up_proj\.weight: its gptq matrix lacks \.scales"
    ):
        open_checkpoint(tmp_path)
