"""Services and budgets: ours are kept as they should be, those of others as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.world import HUB, NAMESPACE, World, facts, gpu_node

from plimsoll.cluster.observed import ApplyObject


def world_with(kind: str, name: str) -> tuple[World, dict[str, Any]]:
    """Somebody had an object of that kind and name before `small` was deployed with two replicas."""
    world = World(gpu_node("g1", 2))
    foreign = {"metadata": {"name": name, "namespace": NAMESPACE, "uid": "theirs"}, "spec": {"selector": {}}}
    kept = world.services if kind == "Service" else world.budgets
    kept[name] = copy.deepcopy(foreign)
    world.serve("small", HUB, replicas=2)
    return world, foreign


def applied(world: World) -> list[str]:
    return [action.body["kind"] for _, action in world.history if isinstance(action, ApplyObject)]


def test_a_service_of_somebody_else_is_left_as_it_is_and_told() -> None:
    world, foreign = world_with("Service", "small")
    assert world.services["small"] == foreign
    assert applied(world) == ["PodDisruptionBudget"]
    for kind, status in (("Ready", "False"), ("Degraded", "True"), ("Progressing", "False")):
        told = world.condition("small", kind)
        assert (told["status"], told["reason"]) == (status, "NameTaken")
        assert "Service small exists and does not belong to this LLMDeployment" in told["message"]
        assert "Delete it" in told["message"]
    assert "NameTaken" in [event.reason for event in world.events]
    assert world.condition("small", "Available")["status"] == "True"


def test_it_is_told_long_before_the_workers_answer() -> None:
    world = World(gpu_node("g1", 1))
    world.services["small"] = {"metadata": {"name": "small", "namespace": NAMESPACE}, "spec": {}}
    world.deploy("small")
    world.settle()
    world.end_inspection("small", facts().pack())
    world.settle()
    assert world.condition("small", "Ready")["reason"] == "Scheduling"
    assert world.condition("small", "Degraded")["reason"] == "NameTaken"


def test_when_it_goes_ours_is_made() -> None:
    world, _ = world_with("Service", "small")
    del world.services["small"]
    world.settle()
    assert world.services["small"]["metadata"]["ownerReferences"]
    assert world.condition("small", "Ready")["status"] == "True"
    assert world.condition("small", "Degraded")["status"] == "False"


def test_a_budget_of_somebody_else_is_left_as_it_is_and_takes_nobody_down() -> None:
    world, foreign = world_with("PodDisruptionBudget", "small")
    assert world.budgets["small"] == foreign
    assert world.condition("small", "Ready")["status"] == "True"
    degraded = world.condition("small", "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NameTaken")
    assert "PodDisruptionBudget small" in degraded["message"]


@pytest.mark.parametrize("seen", [False, True])
def test_only_what_was_seen_to_be_ours_is_written_by_force(seen: bool) -> None:
    world = World(gpu_node("g1", 1))
    world.serve("small")
    if seen:
        world.services["small"]["spec"]["ports"] = []
    else:
        del world.services["small"]
    [write] = [action for action in world.outcome("small").actions if isinstance(action, ApplyObject)]
    assert write.exists is seen
