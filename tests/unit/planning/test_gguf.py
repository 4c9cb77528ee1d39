"""GGUF files are planned in the blocks they were published in, where that is better than widening them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.model.crafted import F16, Q4_1, Q4_K, Q6_K, Q8_0, MemorySource, llama_gguf
from tests.unit.planning.builders import H100, T4, gpu_node, node, request
from tests.unit.planning.test_precisions import PLAIN, decided, planned

from plimsoll.model.facts import LayerClass, ModelFacts, Role
from plimsoll.model.read import read_facts
from plimsoll.planning.formats import formats
from plimsoll.sizing.schemes import stored_format
from plimsoll_worker.launch import CAPABILITIES

CPU: dict[str, Any] = {"placement": {"device": "CPU"}}


def gguf(*kinds: int, layers: int = 2, hidden: int = 256, intermediate: int = 512) -> ModelFacts:
    """A llama whose layers have these types by turns, seven matrices each."""
    of_layers = [[kinds[layer % len(kinds)]] * 7 for layer in range(layers)]
    raw = llama_gguf(of_layers, hidden=hidden, intermediate=intermediate)
    return read_facts(MemorySource({"m.gguf": raw}))


def with_types(facts: ModelFacts, dtype: str) -> ModelFacts:
    """The same with all matrices of a type that the builder of files does not write."""

    def changed(layer: LayerClass) -> LayerClass:
        groups = (
            group if group.role is Role.NORM else group.model_copy(update={"dtype": dtype})
            for group in layer.groups
        )
        return layer.model_copy(update={"groups": tuple(groups)})

    return facts.model_copy(update={"layers": tuple(map(changed, facts.layers))})


def test_a_gpu_keeps_the_blocks_and_computes_in_16_bit() -> None:
    plan = planned([gpu_node("h", H100, 1)], gguf(Q4_K, Q6_K))
    assert (plan.checkpoint_format, plan.weights, plan.kv_cache) == ("gguf", "BF16", "BF16")
    assert plan.summary == f"gguf TP1xPP1, 1 GPU on 1 node ({H100})"


def test_a_cpu_widens_while_there_is_room_and_keeps_the_blocks_where_there_is_none() -> None:
    large = gguf(Q8_0, layers=24, hidden=2048, intermediate=8192)
    roomy = planned([node("c")], large, CAPABILITIES, **CPU)
    narrow = planned([node("c", memory="6Gi")], large, CAPABILITIES, **CPU)
    assert (roomy.checkpoint_format, roomy.weights) == ("", "FP32")
    assert (narrow.checkpoint_format, narrow.weights, narrow.pipeline_parallel) == ("gguf", "FP32", 1)
    assert narrow.memory[0].predicted.weights < roomy.memory[0].predicted.weights / 3


@pytest.mark.parametrize("weights", ["FP32", "BF16", "INT8", "INT4"])
def test_who_names_a_precision_has_the_file_widened_or_rounded_anew(weights: str) -> None:
    plan = planned([gpu_node("h", H100, 1)], gguf(Q4_1), quantization={"weights": weights})
    assert (plan.checkpoint_format, plan.weights) == ("", weights)


@pytest.mark.parametrize("facts", [gguf(F16), with_types(gguf(Q8_0), "Q5_K")], ids=["F16", "Q5_K"])
def test_files_without_blocks_that_stay_are_widened(facts: ModelFacts) -> None:
    assert stored_format(facts) == ""
    assert planned([gpu_node("h", H100, 1)], facts).checkpoint_format == ""


def test_experts_stay_in_no_blocks() -> None:
    facts = gguf(Q8_0)
    layer = facts.layers[0]
    routed = next(group for group in layer.groups if group.role is Role.MLP)
    groups = (*layer.groups, routed.model_copy(update={"role": Role.EXPERT}))
    sparse = facts.model_copy(update={"layers": (layer.model_copy(update={"groups": groups}),)})
    assert stored_format(sparse) == ""


def test_an_engine_that_keeps_no_blocks_widens_them() -> None:
    plan = planned([gpu_node("h", H100, 1)], gguf(Q4_K), PLAIN)
    assert (plan.checkpoint_format, plan.weights) == ("", "FP32")


def test_a_gpu_that_does_not_compute_in_bf16_has_them_widened() -> None:
    plan = planned([gpu_node("t", T4, 1)], gguf(Q4_K))
    assert (plan.checkpoint_format, plan.weights) == ("", "FP32")


def test_a_floor_offers_what_rounds_behind_what_does_not() -> None:
    asked = request(facts=gguf(Q8_0), quantization={"floor": "INT4"})
    found = [one.weights_name for one in formats(asked.spec, gguf(Q8_0))]
    assert found == ["gguf", "FP32", "BF16", "INT8", "FP8", "INT4"]


def test_ranks_that_cut_a_group_of_the_blocks_are_not_offered() -> None:
    # 672 columns on two ranks are 336: ten groups of 32 and a half.
    facts = gguf(Q4_1, intermediate=672)
    decision = decided([gpu_node("h", H100, 2)], facts, parallelism={"tensor": 2})
    assert decision.plan is not None
    assert (decision.plan.checkpoint_format, decision.plan.weights) == ("", "FP32")
