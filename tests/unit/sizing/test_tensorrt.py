"""Capacities that somebody else measured: the most sequences TensorRT-LLM admits, from our weights, cache and
activations, and one set of constants for what is TensorRT-LLM's own.

Measured values: ai-dynamo/aiconfigurator, tests/integration/test_trtllm_kv_cache_capacity.py (its pull
request 652): free fraction 0.8, BF16 cache, max_seq_len = prompt + answer + 1000, max_num_tokens = 2 ×
prompt.
"""

from __future__ import annotations

import json
from statistics import mean

import pytest
from dev.hub.well_known import WELL_KNOWN

from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing.activations import layer_peak
from plimsoll.sizing.weights import layer_bytes, outer_bytes, outer_roles
from plimsoll_worker.launch import Device, Precision

GIB, MIB = 1 << 30, 1 << 20
FREE_FRACTION = (8, 10)
VISIBLE_PERMILLE = 990
"""Of the nominal memory; an H100 of 80 GiB reports 79.22."""
RUNTIME = 3840 * MIB
"""TensorRT-LLM's context, libraries, engine and sampler. aiconfigurator takes 3.5 GiB."""
COLLECTIVES = {1: 0, 2: 342 * MIB, 4: 392 * MIB}
"""NCCL by TP, as aiconfigurator publishes it."""
ACTIVATION_PERCENT = 150
"""Of the closed form: TensorRT-LLM plans its buffers for all of a layer's tensors."""

H100, GB300 = 81_920, 284_208
LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B"
LENGTHS = ((2048, 2048), (2048, 4096), (4096, 2048), (4096, 4096))
MEASURED = {
    (H100, QWEN): {1: (27, 19, 19, 14), 2: (75, 53, 53, 41), 4: (169, 121, 120, 93)},
    (GB300, QWEN): {1: (153, 109, 108, 84), 2: (326, 233, 232, 181), 4: (673, 480, 479, 373)},
    (H100, LLAMA): {1: (78, 56, 55, 43), 2: (173, 124, 123, 96), 4: (363, 259, 258, 201)},
    (GB300, LLAMA): {1: (330, 236, 235, 183), 2: (677, 484, 483, 376), 4: (1371, 979, 978, 761)},
}
ROWS = [
    (memory, model, tensor, *lengths, sequences)
    for (memory, model), by_tensor in MEASURED.items()
    for tensor, row in by_tensor.items()
    for lengths, sequences in zip(LENGTHS, row, strict=True)
]


def facts_of(model: str) -> ModelFacts:
    config = dict(WELL_KNOWN[model])
    if model == QWEN:
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return assemble_closed_form(parse_config(json.dumps(config).encode()), where="config.json", revision="")


FACTS = {model: facts_of(model) for model in (LLAMA, QWEN)}


def capacity(memory: int, model: str, tensor: int, prompt: int, answer: int) -> int:
    """Sequences that fit: what of the free memory is for the cache, over the cache of one sequence."""
    facts = FACTS[model]
    roles = outer_roles(facts, first=True, last=True)
    weights = outer_bytes(facts, tensor, roles, None)
    weights += sum(layer.count * layer_bytes(facts, layer, tensor, None) for layer in facts.layers)
    # A context of 0: its attention gathers nothing.
    alive, _ = layer_peak(
        facts, tokens=2 * prompt, context=0, precision=Precision.BF16, tensor=tensor, device=Device.GPU
    )
    visible = memory * MIB * VISIBLE_PERMILLE // 1000
    used = weights + alive * ACTIVATION_PERCENT // 100 + COLLECTIVES[tensor] + RUNTIME
    free = (visible - used) * FREE_FRACTION[0] // FREE_FRACTION[1]
    layer = facts.layers[0]
    per_token = facts.layer_count * kv.layer_bytes_per_token(layer, Precision.BF16, tensor)
    return free // (per_token * (prompt + answer + 1000))


def test_the_mean_error_is_below_a_hundredth() -> None:
    errors = [abs(capacity(*row[:5]) - row[5]) / row[5] for row in ROWS]
    assert len(errors) == 48
    assert mean(errors) <= 0.01


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)).replace("/", "."))
def test_no_row_is_promised_more_than_was_measured(row: tuple[int, str, int, int, int, int]) -> None:
    assert capacity(*row[:5]) - row[5] <= max(1, row[5] * 2 // 100)
