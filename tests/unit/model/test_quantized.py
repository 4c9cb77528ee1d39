"""Quantized checkpoints: bytes by hand for one small matrix of each format, modules that were skipped, and
headers that do not add up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dev.hub.well_known import safetensors_header
from tests.unit.model.crafted import MemorySource, config

from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.errors import FileUnreadable, FormatUnsupported, ModelError
from plimsoll.model.facts import ModelFacts, PackedMatrices, Role
from plimsoll.model.quantization.config import kept_as
from plimsoll.model.read import read_facts
from plimsoll.model.source import StoredTensor

HIDDEN, INNER = 128, 256
SHAPE = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2, "head_dim": 32}
LINEAR = 2 * HIDDEN * HIDDEN + 2 * 64 * HIDDEN + 3 * HIDDEN * INNER
ROWS = HIDDEN + 64 + 64 + HIDDEN + INNER + INNER + HIDDEN
COLUMNS = 6 * HIDDEN + INNER
OUTER = 2 * 96 * HIDDEN * 2 + HIDDEN * 2
NORMS = 2 * HIDDEN * 2
MATRICES = 7


def group(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


# quantization_config, and the bytes of one layer's linear matrices by hand.
FORMATS: dict[str, tuple[dict[str, Any], int]] = {
    "gptq int4 g128": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        LINEAR // 2 + LINEAR // 128 * 2 + LINEAR // 128 // 2 + COLUMNS * 4,
    ),
    "gptq int8 per channel": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1},
        LINEAR + ROWS * 2 + ROWS + COLUMNS * 4,
    ),
    "awq int4 g64": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM"},
        LINEAR // 2 + LINEAR // 64 * 2 + LINEAR // 64 // 2,
    ),
    "bitsandbytes nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        LINEAR // 2 + LINEAR // 64 * 4 + MATRICES * (16 * 4 + 96),
    ),
    "bitsandbytes nf4, twice": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        # The smallest matrices have fewer than 256 blocks: one nested scale each, 2 for the larger three.
        LINEAR // 2 + LINEAR // 64 + (4 + 3 * 2) * 4 + MATRICES * (256 * 4 + 16 * 4 + 96),
    ),
    "bitsandbytes int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        LINEAR + ROWS * 4 + MATRICES,
    ),
    "fp8 by blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        # q, o: 1 block, k, v: half a one; gate, up, down: 2.
        LINEAR + (4 * 1 + 3 * 2) * 4,
    ),
    "fp8 by tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, LINEAR + MATRICES * 8),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, LINEAR + ROWS * 4 + MATRICES * 4),
    "compressed-tensors int4": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            **group(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
        },
        LINEAR // 2 + LINEAR // 32 * 2 + MATRICES * 16,
    ),
    "compressed-tensors int8": (
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            **group(num_bits=8, type="int", strategy="channel", symmetric=True),
        },
        LINEAR + ROWS * 2,
    ),
    "compressed-tensors fp8": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            **group(num_bits=8, type="float", strategy="channel", symmetric=True),
        },
        LINEAR + ROWS * 2,
    ),
    "compressed-tensors nvfp4": (
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            **group(num_bits=4, type="float", strategy="tensor_group", group_size=16),
        },
        LINEAR // 2 + LINEAR // 16 + MATRICES * 8,
    ),
    "compressed-tensors mxfp4": (
        {
            "quant_method": "compressed-tensors",
            "format": "mxfp4-pack-quantized",
            **group(num_bits=4, type="float", strategy="group", group_size=32),
        },
        LINEAR // 2 + LINEAR // 32,
    ),
    "modelopt nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        LINEAR // 2 + LINEAR // 16 + MATRICES * 8,
    ),
    "modelopt fp8": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]},
        LINEAR + MATRICES * 8,
    ),
}


def tiny(quantization: object, **changes: Any) -> bytes:
    return config(**SHAPE, quantization_config=quantization, **changes)


def formed(raw: bytes) -> ModelFacts:
    return assemble_closed_form(parse_config(raw), where="config.json", revision="")


def source(raw: bytes, tensors: list[StoredTensor]) -> MemorySource:
    header = safetensors_header(tensors)
    size = len(header) + sum(tensor.bytes for tensor in tensors)
    return MemorySource({"config.json": raw, "model.safetensors": header}, sizes={"model.safetensors": size})


@pytest.mark.parametrize(("quantization", "linear"), FORMATS.values(), ids=FORMATS)
def test_every_part_of_a_packed_matrix_is_counted(quantization: dict[str, Any], linear: int) -> None:
    facts = formed(tiny(quantization))
    assert facts.checkpoint_bytes == OUTER + 2 * (linear + NORMS)
    assert facts.quantization == quantization["quant_method"]
    assert facts.parameters == formed(config(**SHAPE)).parameters


@pytest.mark.parametrize(("quantization", "linear"), FORMATS.values(), ids=FORMATS)
def test_headers_of_a_quantized_checkpoint_give_the_same_facts(
    quantization: dict[str, Any], linear: int
) -> None:
    raw = tiny(quantization)
    read = read_facts(source(raw, closed_form(parse_config(raw), "config.json")))
    assert read == formed(raw).model_copy(update={"revision": read.revision})
    assert ModelFacts.unpack(read.pack()) == read


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64}


@pytest.mark.parametrize(
    ("ignored", "skipped"),
    [
        (["model.layers.0.mlp.down_proj"], 1),
        (["self_attn"], 8),
        (["model.layers.1"], 7),
        (["down_proj"], 2),
        (["no_such_module"], 0),
        (["model.language_model.layers.0.mlp.*"], 3),
    ],
    ids=["one", "a part of all", "a layer", "a name in all", "nothing", "wildcard of a wrapped model"],
)
def test_modules_that_a_quantizer_skipped_stay_whole(ignored: list[str], skipped: int) -> None:
    facts = parse_config(tiny({**AWQ, "modules_to_not_convert": ignored}))
    whole = [
        tensor
        for tensor in closed_form(facts, "config.json")
        if tensor.name.endswith("_proj.weight") and tensor.dtype == "BF16"
    ]
    assert len(whole) == skipped


def test_patterns_skip_modules_of_compressed_tensors() -> None:
    raw = tiny({**FORMATS["compressed-tensors int4"][0], "ignore": ["lm_head", "re:.*mlp.*"]})
    packed = [t.name for t in closed_form(parse_config(raw), "c") if t.name.endswith("weight_packed")]
    assert len(packed) == 8
    assert all("self_attn" in name for name in packed)


def test_mixed_headers_decide_whatever_the_configuration_says() -> None:
    raw = tiny(AWQ)
    skipping = tiny({**AWQ, "modules_to_not_convert": ["mlp"]})
    facts = read_facts(source(raw, closed_form(parse_config(skipping), "config.json")))
    by_role = {(group.role, group.dtype) for group in facts.layers[0].groups}
    assert (Role.MLP, "BF16") in by_role
    assert (Role.ATTENTION_Q, "I32") in by_role


REFUSED: dict[str, tuple[object, type[ModelError], str]] = {
    "no method": ({}, FormatUnsupported, "quant_method ''"),
    "unknown method": ({"quant_method": "exl3"}, FormatUnsupported, "'exl3' is not read from config.json"),
    "text": ("awq", FileUnreadable, "quantization_config: expected an object"),
    "another layout of AWQ": ({**AWQ, "version": "gemv"}, FormatUnsupported, "the layout gemm is read"),
    "no bits": ({**AWQ, "bits": "4"}, FileUnreadable, "bits: expected a whole number"),
    "a group of none": ({**AWQ, "group_size": 0}, FileUnreadable, "group_size: expected a whole number"),
    "names that are none": (
        {**AWQ, "modules_to_not_convert": [1]},
        FileUnreadable,
        "modules_to_not_convert: expected names of modules",
    ),
    "a block of one side": (
        {"quant_method": "fp8", "weight_block_size": [128]},
        FileUnreadable,
        "weight_block_size: expected two sizes",
    ),
    "two groups": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}},
        FormatUnsupported,
        "config_groups: one group is read",
    ),
    "sparse": (
        {"quant_method": "compressed-tensors", "format": "marlin-24", **group(num_bits=4)},
        FormatUnsupported,
        "'marlin-24'",
    ),
    "a pattern that never ends": (
        {**FORMATS["compressed-tensors int4"][0], "ignore": ["re:(a+)+b"]},
        FormatUnsupported,
        "the pattern",
    ),
    "another one": (
        {**FORMATS["compressed-tensors int4"][0], "ignore": ["re:(.|.)*x"]},
        FormatUnsupported,
        "the pattern",
    ),
    "a pattern of many": (
        {**FORMATS["compressed-tensors int4"][0], "ignore": ["re:.*.*.*.*.*x"]},
        FormatUnsupported,
        "the pattern",
    ),
    "a pattern that is none": (
        {**FORMATS["compressed-tensors int4"][0], "ignore": ["re:(a"]},
        FileUnreadable,
        "is no pattern",
    ),
    "another algorithm": ({"quant_method": "modelopt", "quant_algo": "W4A8"}, FormatUnsupported, "'W4A8'"),
}


@pytest.mark.parametrize(("quantization", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_known_layout_is_refused_by_name(
    quantization: object, error: type[ModelError], words: str
) -> None:
    with pytest.raises(error) as caught:
        formed(tiny(quantization))
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)


def _without(tensors: list[StoredTensor], end: str) -> list[StoredTensor]:
    return [tensor for tensor in tensors if not tensor.name.endswith(end)]


def test_scales_without_their_weight_are_refused() -> None:
    raw = tiny(AWQ)
    tensors = _without(closed_form(parse_config(raw), "c"), "layers.1.mlp.up_proj.qweight")
    with pytest.raises(FileUnreadable, match=r"layers\.1\.mlp\.up_proj: has scales and no weight"):
        read_facts(source(raw, tensors))


def test_packed_numbers_of_another_shape_are_refused() -> None:
    raw = tiny(AWQ)
    tensors = closed_form(parse_config(raw), "c")
    with pytest.raises(FileUnreadable, match="holds no"):
        read_facts(source(json.dumps({**json.loads(raw), "intermediate_size": 192}).encode(), tensors))


KEPT: dict[str, tuple[dict[str, Any], PackedMatrices | None]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        PackedMatrices(precision="INT4", group=64),
    ),
    "gptq, a scale a row": (
        {"quant_method": "gptq", "bits": 4, "group_size": -1},
        PackedMatrices(precision="INT4"),
    ),
    "gptq of 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": 128}, None),
    "gptq, columns reordered": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True},
        None,
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, PackedMatrices(precision="INT4", group=32)),
    "fp8 in blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        PackedMatrices(precision="FP8", in_blocks=True),
    ),
    "fp8 in other blocks": ({"quant_method": "fp8", "weight_block_size": [64, 128]}, None),
    "fp8": ({"quant_method": "fp8"}, PackedMatrices(precision="FP8")),
    "packed integers of 8 bits": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            **group(num_bits=8, strategy="channel"),
        },
        PackedMatrices(precision="INT8"),
    ),
    "packed integers of 8 bits in groups": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            **group(num_bits=8, strategy="group", group_size=64),
        },
        None,
    ),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
    "a method nobody knows": ({"quant_method": "hqq"}, None),
}


@pytest.mark.parametrize(("quantization", "kept"), KEPT.values(), ids=KEPT.keys())
def test_what_packed_matrices_are_kept_in_is_told_by_their_layout(
    quantization: dict[str, Any], kept: PackedMatrices | None
) -> None:
    assert kept_as(quantization, "quantization_config") == kept
