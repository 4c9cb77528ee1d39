"""MIG slices are used when they are asked for, and never by a deployment that asks for whole GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.planning.builders import GPU, WIDE, decide_one, gpu_node, llama, node, places, pod, request

from plimsoll.inventory.nodes import node_view
from plimsoll.inventory.views import NodeView, Resources

A100 = "NVIDIA-A100-SXM4-40GB"
SLICE = "nvidia.com/mig-3g.20gb"
MIG: dict[str, Any] = {"placement": {"sharing": "MIG"}}
SMALL = llama(1.0, layers=8)


def sliced_node(name: str, slices: int = 2) -> NodeView:
    """An A100 under strategy mixed."""
    labels = {
        "nvidia.com/gpu.product": A100,
        "nvidia.com/gpu.memory": "40960",
        "nvidia.com/gpu.replicas": "0",
        f"{SLICE}.product": f"{A100}-MIG-3g.20gb",
        f"{SLICE}.memory": "20096",
        f"{SLICE}.count": str(slices),
    }
    allocatable = {GPU: "0", SLICE: str(slices), "cpu": "32", "memory": "256Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True"}
    status = {"allocatable": allocatable | {"ephemeral-storage": "1Ti"}, "conditions": [ready]}
    return node_view({"metadata": {"name": name, "labels": labels}, "status": status})


def test_a_replica_takes_one_slice_and_asks_for_its_resource() -> None:
    decision = decide_one([gpu_node("whole"), sliced_node("cut")], request(facts=SMALL, replicas=2, **MIG))
    assert decision.plan is not None
    assert places(decision) == ["cut", "cut"]
    assert (decision.plan.resource_name, decision.plan.product) == (SLICE, f"{A100}-MIG-3g.20gb")
    assert decision.plan.memory[0].line == (20096 << 20) * 97 // 100


def test_whole_gpus_are_what_everybody_else_gets() -> None:
    decision = decide_one([sliced_node("cut"), gpu_node("whole")], request(facts=SMALL))
    assert places(decision) == ["whole"]


def test_slices_alone_are_no_answer_to_who_asks_for_whole_gpus() -> None:
    decision = decide_one([sliced_node("cut")], request(facts=SMALL))
    assert decision.plan is None
    assert decision.rejection is not None
    assert decision.rejection.reason == "NoMatchingNodes"
    assert f"cut has MIG slices ({A100}-MIG-3g.20gb), placement.sharing is Exclusive" in (
        decision.rejection.message
    )


def test_whole_gpus_alone_are_no_answer_to_who_asks_for_slices() -> None:
    decision = decide_one([gpu_node("whole"), node("bare")], request(facts=SMALL, **MIG))
    assert decision.rejection is not None
    assert "placement.sharing is MIG" in decision.rejection.message


def test_a_model_is_never_cut_over_slices() -> None:
    engine = WIDE.model_copy(update={"max_pipeline_parallel": 8})
    decision = decide_one([sliced_node("cut"), sliced_node("other")], request(**MIG), capabilities=engine)
    assert decision.plan is None
    assert decision.rejection is not None
    assert decision.rejection.reason == "InsufficientMemory"
    assert [option.option for option in decision.rejection.rejected] == [f"BF16 TP1 on {A100}-MIG-3g.20gb"]


def test_slices_that_others_hold_are_taken() -> None:
    taken = replace(pod("other", "cut"), requests=Resources(pods=1, extended={SLICE: 2}))
    decision = decide_one([sliced_node("cut")], request(facts=SMALL, **MIG), pods=[taken])
    assert decision.rejection is not None
    assert decision.rejection.reason == "InsufficientGPUs"
