"""The samples of reduced precisions on a real kubelet: rounded while they are loaded, counted as planned, and
answering."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.cluster.operator_process import OperatorProcess
from tests.node.test_main_path import Scene, images, operators, scene

__all__ = ["images", "operators", "scene"]
pytestmark = [pytest.mark.cluster, pytest.mark.node]

SAMPLES = {
    "smollm2-int8.yaml": "INT8",
    "smollm2-fp8.yaml": "FP8",
    "smollm2-int4.yaml": "INT4",
}


def test_each_precision_is_planned_loaded_as_counted_and_answers(
    scene: Scene, operators: Callable[..., OperatorProcess]
) -> None:
    operators()
    for sample, precision in SAMPLES.items():
        name = scene.apply(sample)
        scene.wait_ready(name)
        answer = scene.complete(name)
        assert answer.strip(), f"{precision} says nothing"
        if precision != "INT4":
            assert "Paris" in answer, precision
        scene.wait(
            lambda name=name: scene.condition(name, "Verified")["status"] == "True", "its report", name, 60
        )
        status = scene.get(name)["status"]
        [plan], [measured] = status["plans"], status["measured"]
        assert (plan["weights"], plan["compute"], measured["weights"]) == (precision, "FP32", precision)
        predicted, found = plan["memory"][0]["predicted"]["weights"], measured["bytes"]["weights"]
        assert abs(found - predicted) <= predicted // 1000, precision
        scene.delete_and_expect_nothing(name)
    assert not scene.census.faults
