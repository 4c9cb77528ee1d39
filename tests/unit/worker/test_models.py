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
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model

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
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, sliding window": ("Mistral", {"sliding_window": 7}),
    "mistral, wide heads": ("Mistral", {"sliding_window": None, "head_dim": 12}),
}
TOKENS = 40


def saved(kind: str, changes: Mapping[str, object], folder: Path, **save: Any) -> Any:
    """A random model of transformers, written to `folder`."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder, **save)
    return model


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("chunk", [64, 5], ids=["whole prompt", "chunks of 5"])
def test_logits_are_transformers_logits(
    kind: str, changes: Mapping[str, object], chunk: int, tmp_path: Path
) -> None:
    theirs = saved(kind, changes, tmp_path)
    ours = load_model(open_checkpoint(tmp_path), device=torch.device("cpu"), precision=Precision.FP32)
    text = torch.randint(0, 97, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(text).logits
    # A prompt of 30, then one token after the other: prefill, chunks and decoding all meet the same logits.
    sequences = [sequence(tuple(row[:30].tolist()), name=str(i), max_tokens=10) for i, row in enumerate(text)]
    for current, logits in steps(paged(ours, blocks=24, block_size=4), sequences, max_batched_tokens=chunk):
        row, position = int(current.id), len(current.tokens)
        torch.testing.assert_close(logits, expected[row, position - 1], atol=1e-4, rtol=1e-4)
        current.append(int(text[row, position]))


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
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
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
