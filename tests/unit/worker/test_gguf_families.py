"""Every family as GGUF: the same model as its safetensors, under llama.cpp's names, keys and layouts.

Names come from the `gguf` package's own table, keys from its writer; layouts are those of llama.cpp's
converter (convert_hf_to_gguf.py), written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tests.unit.worker.test_models import CASES, opened, saved

ARCHITECTURES = {
    "Llama": gguf.MODEL_ARCH.LLAMA,
    "Qwen2": gguf.MODEL_ARCH.QWEN2,
    "Qwen3": gguf.MODEL_ARCH.QWEN3,
    "Gemma2": gguf.MODEL_ARCH.GEMMA2,
    "Gemma3": gguf.MODEL_ARCH.GEMMA3,
    "Phi3": gguf.MODEL_ARCH.PHI3,
    "Granite": gguf.MODEL_ARCH.GRANITE,
    "Mixtral": gguf.MODEL_ARCH.LLAMA,
    "Qwen3Moe": gguf.MODEL_ARCH.QWEN3MOE,
}
INTERLEAVED = ("Llama", "Mixtral", "Granite")
CONVERTED = {
    "llama": {},
    "llama, biases": {},
    "llama, wide heads": {},
    "llama, linear rope": {},
    "smollm2": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3, yarn": {},
    # In llama.cpp's code, not in the file: the scale by the width of a head, alternating windows.
    "gemma2": {"query_pre_attn_scalar": 10},
    "gemma3": {"query_pre_attn_scalar": 10, "num_hidden_layers": 7, "layer_types": None},
    "gemma3, two rope bases": {
        "query_pre_attn_scalar": 10,
        "num_hidden_layers": 6,
        "layer_types": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "phi3": {},
    "phi3, part of the head rotated, tied": {},
    "phi3, longrope beyond the first length": {},
    "granite": {},
    "granite, biases, tied": {},
    "mixtral": {},
    "qwen3_moe": {},
}  # fmt: skip


def metadata(writer: gguf.GGUFWriter, theirs: Any) -> None:
    """What the converter's `set_gguf_parameters` write."""
    config = theirs.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        # Phi3MiniModel.set_gguf_parameters: sqrt(1 + ln(scale) / ln(original)), scale 256 / 16
        writer.add_rope_scaling_attn_factors(2.0**0.5)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if theirs.config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """LlamaModel.permute."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def converted(kind: str, theirs: Any, path: Path) -> None:
    """Write transformers' model as llama.cpp's converter would."""
    architecture = ARCHITECTURES[kind]
    config = theirs.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    metadata(writer, theirs)
    for name, stored in theirs.state_dict().items():
        tensor = stored
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if kind in INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            tensor = interleaved(tensor, heads)
        if kind.startswith("Gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                layer = name.split(".")[2]
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", half.contiguous().numpy())
            continue
        if name.endswith("experts.down_proj"):
            name += ".weight"
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        writer.add_tensor(found, tensor.numpy())
    rope = config.rope_parameters
    for length in ("long", "short"):
        if f"{length}_factor" in rope:
            factors = torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("case", "changes"), CONVERTED.items(), ids=CONVERTED.keys())
def test_a_family_is_the_same_model_in_both_formats(
    case: str, changes: Mapping[str, object], tmp_path: Path
) -> None:
    kind, usual = CASES[case]
    theirs = saved(kind, {**usual, **changes}, tmp_path)
    converted(kind, theirs, tmp_path / "model.gguf")
    expected = opened(tmp_path)
    found = opened(tmp_path / "model.gguf")
    assert fields(found.config, float) == fields(expected.config, in_fp32)
    ours, theirs_too = dict(found.named_parameters()), dict(expected.named_parameters())
    assert ours.keys() == theirs_too.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs_too[name], atol=2e-7, rtol=0, msg=name)


def in_fp32(number: float) -> Any:
    """GGUF holds numbers in FP32."""
    return pytest.approx(number, rel=1e-6)


def fields(value: Any, number: Callable[[float], Any]) -> Any:
    """A configuration as dicts and tuples, but what only a tokenizer's metadata says."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple):
        return tuple(fields(part, number) for part in value)
    if is_dataclass(value):
        names = value.__dataclass_fields__.keys() - {"eos_token_ids"}
        return {name: fields(getattr(value, name), number) for name in sorted(names)}
    return value
