"""GGUF files: every element type, the layout of q and k, metadata, and files that are damaged."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll_worker.config import FrequencyFactors, LinearScaling, Llama3Scaling, Rope
from plimsoll_worker.errors import ModelNotFound, ModelUnreadable, ModelUnsupported
from plimsoll_worker.layers.rotary import inverse_frequencies
from plimsoll_worker.loading.checkpoint import Part, open_checkpoint
from plimsoll_worker.loading.gguf_file import GgufFile
from plimsoll_worker.loading.gguf_matrices import halves_from_pairs

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS, VOCAB = 64, 4, 2, 96, 2, 50
METADATA: dict[str, int | float | str] = {
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def write(
    path: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] = METADATA,
    more: Mapping[str, np.ndarray[Any, Any]] | None = None,
    architecture: str = "llama",
) -> dict[str, np.ndarray[Any, Any]]:
    """A small llama GGUF with matrices of `kind`; returns what was written, before quantisation."""
    random = np.random.default_rng(3)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (HIDDEN // 2, HIDDEN),
            f"blk.{layer}.attn_v.weight": (HIDDEN // 2, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= more or {}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    for name, tensor in tensors.items():
        if tensor.ndim == 1 or kind is GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def half(raw: bytes) -> float:
    value: float = struct.unpack("<e", raw)[0]
    return value


def by_the_book(kind: str, raw: bytes) -> list[float]:
    """One block dequantised from the description of its struct in ggml-common.h, number by number."""
    if kind == "Q8_0":
        return [np.float32(half(raw[:2])) * np.float32(q) for q in struct.unpack("<32b", raw[2:])]
    quants = raw[2:] if kind == "Q4_0" else raw[4:]
    nibbles = [byte & 15 for byte in quants] + [byte >> 4 for byte in quants]
    scale = np.float32(half(raw[:2]))
    if kind == "Q4_0":
        return [scale * np.float32(nibble - 8) for nibble in nibbles]
    return [scale * np.float32(nibble) + np.float32(half(raw[2:4])) for nibble in nibbles]


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_dequantised_as_the_format_says(name: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[name]
    written = write(tmp_path / "m.gguf", kind=kind)
    file = GgufFile(tmp_path / "m.gguf")
    for tensor in ("token_embd.weight", "blk.1.ffn_down.weight"):
        raw = gguf.quantize(written[tensor], kind).tobytes()
        size = gguf.GGML_QUANT_SIZES[kind][1]
        expected = [
            value for at in range(0, len(raw), size) for value in by_the_book(name, raw[at : at + size])
        ]
        assert file.read(tensor).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
def test_plain_types_are_read_as_they_are(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    written = write(tmp_path / "m.gguf", kind=GGMLQuantizationType[name])
    read = GgufFile(tmp_path / "m.gguf").read("token_embd.weight")
    assert read.dtype == dtype
    assert torch.equal(read, torch.from_numpy(written["token_embd.weight"]).to(dtype))


def test_a_large_tensor_is_dequantised_in_slabs_without_a_seam(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    large = np.random.default_rng(1).normal(size=(5000, 416)).astype(np.float32)
    write(tmp_path / "m.gguf", kind=kind, more={"large.weight": large})
    expected = gguf.dequantize(gguf.quantize(large, kind), kind)
    assert torch.equal(GgufFile(tmp_path / "m.gguf").read("large.weight"), torch.from_numpy(expected))


@pytest.mark.parametrize("part", [None, Part(rows=(16, 32)), Part(columns=(3, 40))], ids=str)
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.0.self_attn.q_proj.weight"])
def test_tensors_are_read_a_few_rows_at_a_time(
    name: str, part: Part | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "m.gguf", kind=GGMLQuantizationType.Q8_0)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    whole = torch.empty(checkpoint.shape(name))
    checkpoint.read(name, whole)
    monkeypatch.setattr("plimsoll_worker.loading.gguf.NUMBERS_AT_ONCE", 20 * HIDDEN)
    expected = (part or Part()).of(whole)
    found = torch.empty_like(expected)
    checkpoint.read(name, found, part)
    assert torch.equal(found, expected)


def scale_and_min(scales: bytes, index: int) -> tuple[int, int]:
    """ggml-quants.c, get_scale_min_k4: eight pairs of 6 bits in twelve bytes."""
    if index < 4:
        return scales[index] & 63, scales[index + 4] & 63
    low = scales[index + 4]
    return low & 15 | scales[index - 4] >> 6 << 4, low >> 4 | scales[index] >> 6 << 4


def four_or_five_bits(raw: bytes, fifth: bytes | None) -> list[float]:
    """dequantize_row_q4_K and, with the fifth bits, dequantize_row_q5_K."""
    scale, smallest, scales, quants = (
        np.float32(half(raw[:2])),
        np.float32(half(raw[2:4])),
        raw[4:16],
        raw[-128:],
    )
    values = []
    for index in range(8):
        factor, least = scale_and_min(scales, index)
        for place in range(32):
            quant = quants[index // 2 * 32 + place] >> 4 * (index % 2) & 15
            if fifth is not None:
                quant += (fifth[place] >> index & 1) << 4
            values.append(scale * np.float32(factor) * np.float32(quant) - smallest * np.float32(least))
    return values


def six_bits(raw: bytes) -> list[float]:
    """dequantize_row_q6_K."""
    low, high, scales = raw[:128], raw[128:192], struct.unpack("<16b", raw[192:208])
    scale = np.float32(half(raw[208:]))
    values = []
    for at in range(256):
        part, quarter, place = at // 128, at // 32 % 4, at % 32
        bits = low[part * 64 + quarter % 2 * 32 + place] >> 4 * (quarter // 2) & 15
        quant = (bits | (high[part * 32 + place] >> 2 * quarter & 3) << 4) - 32
        values.append(scale * np.float32(scales[at // 16]) * np.float32(quant))
    return values


def five_bits(raw: bytes, *, least: bool) -> list[float]:
    """dequantize_row_q5_0 and, with a least value, dequantize_row_q5_1."""
    scale, head = np.float32(half(raw[:2])), 4 if least else 2
    fifth = int.from_bytes(raw[head : head + 4], "little")
    nibbles = [byte & 15 for byte in raw[head + 4 :]] + [byte >> 4 for byte in raw[head + 4 :]]
    quants = [nibble | (fifth >> place & 1) << 4 for place, nibble in enumerate(nibbles)]
    if least:
        return [scale * np.float32(quant) + np.float32(half(raw[2:4])) for quant in quants]
    return [scale * np.float32(quant - 16) for quant in quants]


FROM_BLOCK: dict[str, Callable[[bytes], list[float]]] = {
    "Q5_0": lambda raw: five_bits(raw, least=False),
    "Q5_1": lambda raw: five_bits(raw, least=True),
    "Q4_K": lambda raw: four_or_five_bits(raw, None),
    "Q5_K": lambda raw: four_or_five_bits(raw, raw[16:48]),
    "Q6_K": six_bits,
}


@pytest.mark.parametrize("name", FROM_BLOCK)
def test_blocks_that_nothing_here_can_write_are_dequantised_as_the_format_says(
    name: str, tmp_path: Path
) -> None:
    kind = GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(5).integers(0, 256, (6, size), dtype=np.uint8)
    places = [slice(208, 210)] if name == "Q6_K" else [slice(0, 2), slice(2, 4)][: 1 + (name != "Q5_0")]
    for place in places:  # scales that are numbers, not any 16 bits
        blocks[:, place] = np.frombuffer(np.float16(0.37).tobytes(), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", blocks.reshape(3, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = [value for block in blocks for value in FROM_BLOCK[name](block.tobytes())]
    found = GgufFile(tmp_path / "m.gguf").read("w")
    assert found.shape == (3, 2 * elements)
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 5), half_width=st.integers(1, 6), columns=st.integers(1, 4))
def test_the_permutation_of_q_and_k_is_undone(heads: int, half_width: int, columns: int) -> None:
    rows = heads * half_width * 2
    original = torch.arange(rows * columns).reshape(rows, columns)
    # llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute
    permuted = original.reshape(heads, 2, half_width, columns).swapaxes(1, 2).reshape(rows, columns)
    assert torch.equal(halves_from_pairs(permuted, heads), original)


def test_rope_factors_of_the_file_equal_llama3_scaling(tmp_path: Path) -> None:
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
    plain = inverse_frequencies(Rope(10000.0, 16), 128)
    stretched = inverse_frequencies(Rope(10000.0, 16, scaling), 128)
    # As llama.cpp's converter writes them: what each plain frequency is divided by.
    write(tmp_path / "m.gguf", more={"rope_freqs.weight": (plain / stretched).numpy()})
    rope = open_checkpoint(tmp_path / "m.gguf").config.layers[0].rope
    assert isinstance(rope.scaling, FrequencyFactors)
    torch.testing.assert_close(inverse_frequencies(rope, 128), stretched)


LINEAR = {
    "typed": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "untyped": {"llama.rope.scaling.factor": 4.0},
    "old key": {"llama.rope.scale_linear": 4.0},
}


@pytest.mark.parametrize("keys", LINEAR.values(), ids=LINEAR.keys())
def test_linear_scaling_is_found_under_all_its_keys(keys: Mapping[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", metadata={**METADATA, **keys})
    assert open_checkpoint(tmp_path).config.layers[0].rope.scaling == LinearScaling(4.0)


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    head = np.ones((VOCAB, HIDDEN), dtype=np.float32)
    write(tmp_path / "m.gguf", more={"output.weight": head})
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.config.tied
    assert "lm_head.weight" in checkpoint.names()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"architecture": "mistral", "metadata": {"mistral.expert_count": 8}}, "with experts"),
    "partial rotary": ({"metadata": {**METADATA, "llama.rope.dimension_count": 8}}, "rope.dimension_count"),
    "dynamic rope": ({"metadata": {**METADATA, "llama.rope.scaling.type": "dynamic"}}, "rope.scaling.type"),
    "architecture": ({"architecture": "gpt2"}, "general.architecture"),
    "element type": ({"kind": GGMLQuantizationType.MXFP4}, "is MXFP4"),
    "split": ({"metadata": {**METADATA, "split.count": 3}}, "split.count"),
}


@pytest.mark.parametrize(("how", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_implemented_is_refused_by_name(
    how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "m.gguf", **how)
    with pytest.raises(ModelUnsupported, match=message):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", more={"blk.0.ssm_conv1d.weight": np.ones(16, dtype=np.float32)})
    with pytest.raises(ModelUnsupported, match=r"blk\.0\.ssm_conv1d\.weight"):
        open_checkpoint(tmp_path / "m.gguf").names()


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.001, 0.01, 0.2, 0.7, 0.999])
def test_a_truncated_file_is_refused_by_name_wherever_it_ends(part: float, tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: math.floor(len(content) * part)])
    with pytest.raises(ModelUnreadable, match=r"cut\.gguf"):
        open_checkpoint(cut)


def test_something_else_than_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 a zip file, say")
    with pytest.raises(ModelUnreadable, match="expected b'GGUF'"):
        open_checkpoint(tmp_path)


def test_a_folder_must_hold_one_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"neither config\.json nor"):
        open_checkpoint(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name)
    with pytest.raises(ModelNotFound, match=r"found 2 GGUF files \(a\.gguf, b\.gguf\)"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelNotFound, match="no such file"):
        open_checkpoint(tmp_path / "c.gguf")
