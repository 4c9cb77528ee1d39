"""Small random models of every kind against transformers: same weights, same logits, FP32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.unit.worker.decoding import paged, sequence, steps

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.launch import CAPABILITIES, Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.models.families import FAMILIES

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3, 1.8],
    "long_factor": [1.2, 2.0, 3.0, 7.0],
}
GEMMA = {
    "head_dim": 10,
    "query_pre_attn_scalar": 14,
    "sliding_window": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.1,
    "pad_token_id": None,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
QWEN_MOE = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3, "head_dim": 12}
CASES: dict[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 20}),
    "llama, every head its own keys": ("Llama", {"num_key_value_heads": 6}),
    "llama, one key head": ("Llama", {"num_key_value_heads": 1}),
    "llama, linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("Llama", {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 20.0}}),
    "smollm2": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_size": 72,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, sliding window": ("Mistral", {"sliding_window": 7}),
    "mistral, wide heads": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows from a layer on": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3, biases, tied": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3, yarn": ("Qwen3", {"head_dim": 12, "rope_parameters": YARN}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2, no caps": ("Gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
    "gemma3, two rope bases": (
        "Gemma3",
        {
            **GEMMA,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "phi3": ("Phi3", {"pad_token_id": None}),
    "phi3, sliding window": ("Phi3", {"pad_token_id": None, "sliding_window": 7}),
    "phi3, part of the head rotated, tied": (
        "Phi3",
        {
            "pad_token_id": None,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "phi3, longrope beyond the first length": (
        "Phi3",
        {"pad_token_id": None, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
    "granite": ("Granite", GRANITE),
    "granite, biases, tied": (
        "Granite",
        {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral, sliding window": ("Mixtral", {"num_local_experts": 5, "sliding_window": 7}),
    "qwen3_moe": ("Qwen3Moe", {**QWEN_MOE, "norm_topk_prob": True}),
    "qwen3_moe, some layers dense": (
        "Qwen3Moe",
        {**QWEN_MOE, "norm_topk_prob": False, "mlp_only_layers": [0], "decoder_sparse_step": 2},
    ),
}
PROMPT, ANSWER = 20, 36
NEAR_TIE = 1e-3


def saved(kind: str, changes: Mapping[str, object], folder: Path, **save: Any) -> Any:
    """A random model of transformers, written to `folder`."""
    torch.manual_seed(1)
    config = configuration(kind)(**{**SMALL, **changes})
    model = causal_lm(kind)(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder, **save)
    return model


def causal_lm(kind: str) -> Any:
    return getattr(transformers, f"{kind}ForCausalLM")


def configuration(kind: str) -> Any:
    return getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")


def opened(folder: Path, **load: Any) -> Decoder:
    return load_model(open_checkpoint(folder), device=torch.device("cpu"), precision=Precision.FP32, **load)


@torch.no_grad()
def reference(theirs: Any, *, length: int = PROMPT + ANSWER) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts with transformers' greedy answers, (2, length), and the logits of all of it."""
    prompts = torch.randint(0, 97, (2, PROMPT), generator=torch.Generator().manual_seed(2))
    text = theirs.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=length - PROMPT,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    return text, theirs(text, use_cache=False).logits


def assert_same_answers(
    ours: Decoder, text: torch.Tensor, expected: torch.Tensor, *, max_batched_tokens: int
) -> None:
    """Prefill, in chunks or whole, then one token after the other over the paged cache: the same logits, and
    so the same greedy tokens but where two are as good as equal."""
    prompts = [tuple(row[:PROMPT].tolist()) for row in text]
    answer = text.shape[1] - PROMPT
    sequences = [sequence(prompt, name=str(i), max_tokens=answer) for i, prompt in enumerate(prompts)]
    compared = 0
    runner = paged(ours, blocks=32, block_size=4)
    for current, logits in steps(runner, sequences, max_batched_tokens=max_batched_tokens):
        row, position = int(current.id), len(current.tokens)
        theirs = expected[row, position - 1]
        torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)
        assert theirs.max() - theirs[logits.argmax()] < NEAR_TIE
        current.append(int(text[row, position]))
        compared += 1
    assert compared == 2 * answer


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES.keys())
def test_answers_are_transformers_answers(kind: str, changes: Mapping[str, object], tmp_path: Path) -> None:
    text, logits = reference(saved(kind, changes, tmp_path))
    ours = opened(tmp_path)
    assert_same_answers(ours, text, logits, max_batched_tokens=64)
    assert_same_answers(ours, text, logits, max_batched_tokens=5)


def test_every_architecture_that_is_offered_is_held_against_transformers() -> None:
    held = {configuration(kind).model_type for kind, _ in CASES.values()}
    assert held == set(CAPABILITIES.architectures) == set(FAMILIES)


def test_longrope_takes_the_short_factors_where_no_long_context_is_served(tmp_path: Path) -> None:
    changes = {"pad_token_id": None, "rope_parameters": LONGROPE, "original_max_position_embeddings": 64}
    text, logits = reference(saved("Phi3", changes, tmp_path))
    assert_same_answers(opened(tmp_path, context=64), text, logits, max_batched_tokens=64)
    other = opened(tmp_path, context=65)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_answers(other, text, logits, max_batched_tokens=64)


def test_a_checkpoint_in_several_files_is_read_by_its_index(tmp_path: Path) -> None:
    theirs = saved("Llama", {}, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = load_model(open_checkpoint(tmp_path), device=torch.device("cpu"), precision=Precision.FP32)
    assert torch.equal(ours.embed_tokens.weight, theirs.model.embed_tokens.weight)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_weights_are_kept_in_the_planned_precision(precision: Precision, tmp_path: Path) -> None:
    saved("Llama", {}, tmp_path)
    ours = load_model(open_checkpoint(tmp_path), device=torch.device("cpu"), precision=precision)
    full = load_model(open_checkpoint(tmp_path), device=torch.device("cpu"), precision=Precision.FP32)
    assert {parameter.element_size() for parameter in ours.parameters()} == {precision.bytes}
    assert ours.weight_bytes * 2 == full.weight_bytes


UNSUPPORTED = {
    "model_type": ({"model_type": "qwen9"}, "model_type"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    "dynamic rope": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
        "rope_parameters.rope_type",
    ),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
}


@pytest.mark.parametrize(("changes", "field"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_is_not_implemented_is_refused_by_the_name_of_its_field(
    changes: Mapping[str, object], field: str, tmp_path: Path
) -> None:
    import json

    saved("Llama", {}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelUnsupported, match=field):
        open_checkpoint(tmp_path)
