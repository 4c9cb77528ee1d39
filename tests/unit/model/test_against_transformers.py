"""An independent oracle: the parameters that `transformers` builds from the same hyper-parameters, on the
meta device."""

from __future__ import annotations

import json

import pytest
import torch
from tests.unit.model.crafted import config
from transformers import AutoConfig, AutoModelForCausalLM

from plimsoll.model.closed_form import closed_form
from plimsoll.model.config_json import parse_config

SHAPES = {
    "llama": {"model_type": "llama"},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, wide heads": {"model_type": "llama", "head_dim": 48, "num_key_value_heads": 4},
    "mistral": {"model_type": "mistral", "head_dim": 24},
    "mistral, default KV heads": {
        "model_type": "mistral",
        "num_attention_heads": 8,
        "num_key_value_heads": None,
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 with biases": {
        "model_type": "qwen3",
        "attention_bias": True,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_closed_form_names_and_shapes_are_those_of_transformers(changes: dict[str, object]) -> None:
    raw = config(**changes)
    values = json.loads(raw)
    oracle_config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        oracle = AutoModelForCausalLM.from_config(oracle_config)
    expected = {name: tuple(parameter.shape) for name, parameter in oracle.named_parameters()}
    ours = {tensor.name: tensor.shape for tensor in closed_form(parse_config(raw), "config.json")}
    assert ours == expected
