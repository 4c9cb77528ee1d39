"""On CPUs a model is cut into stages where it is asked for, and where no node holds it whole."""

from __future__ import annotations

from typing import Any

from tests.unit.planning.builders import decide_one, llama, node, places, request

from plimsoll.planning.snapshot import Decision
from plimsoll_worker.launch import CAPABILITIES

CPU: dict[str, Any] = {
    "placement": {"device": "CPU"},
    "workload": {"maxContextTokens": 1024, "maxConcurrentSequences": 1},
}
SMALL = llama(8, dtype="F32")
"""30 GiB of weights."""


def decided(*memory: str, facts: Any = SMALL, stages: int = 16, **fields: Any) -> Decision:
    nodes = [node(f"n{index}", memory=size) for index, size in enumerate(memory)]
    engine = CAPABILITIES.model_copy(update={"max_pipeline_parallel": stages})
    return decide_one(nodes, request(facts=facts, **CPU, **fields), capabilities=engine)


def test_what_one_node_holds_is_not_cut() -> None:
    decision = decided("64Gi", "20Gi", "20Gi", "20Gi")
    assert decision.plan is not None
    assert (decision.plan.pipeline_parallel, places(decision)) == (1, ["n0"])


def test_what_no_node_holds_is_cut_into_the_fewest_stages_that_fit() -> None:
    decision = decided("24Gi", "24Gi", "24Gi")
    assert decision.plan is not None
    assert decision.plan.pipeline_parallel == 2
    assert sum(decision.plan.stage_layers) == 32
    assert len(set(places(decision))) == 2
    assert decision.plan.summary == "FP32 TP1xPP2 on CPU of 2 nodes"


def test_stages_that_are_asked_for_are_planned_also_on_one_node() -> None:
    decision = decided("64Gi", parallelism={"pipeline": 3})
    assert decision.plan is not None
    assert (decision.plan.pipeline_parallel, places(decision)) == (3, ["n0"] * 3)
    assert max(decision.plan.stage_layers) <= 12


def test_stages_stay_on_one_node_where_the_spec_says_so() -> None:
    never = {"pipeline": 2, "multiNode": "Never"}
    assert len(set(places(decided("64Gi", "24Gi", "24Gi", parallelism=never)))) == 1
    refused = decided("24Gi", "24Gi", parallelism=never)
    assert refused.plan is None or not refused.placements


def test_an_engine_without_stages_says_what_it_lacks() -> None:
    decision = decided("24Gi", "24Gi", stages=1, parallelism={"pipeline": 2})
    assert not decision.placements
    assert decision.rejection is not None
    assert "runs pipeline parallel 1" in decision.rejection.message


def test_more_stages_than_layers_are_refused_by_their_numbers() -> None:
    decision = decided("64Gi", facts=llama(1, layers=4, dtype="F32"), parallelism={"pipeline": 5})
    assert decision.rejection is not None
    assert decision.rejection.reason == "NotDivisible"
    assert "5 pipeline stages for 4 layers" in decision.rejection.message
