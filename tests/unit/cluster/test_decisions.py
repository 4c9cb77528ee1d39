"""Planning for all resources together, and around one that planning breaks on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.cluster.world import World, gpu_node

from plimsoll.cluster import decisions, steering
from plimsoll.planning.snapshot import Snapshot


def test_a_resource_that_planning_breaks_on_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(gpu_node("g1"), gpu_node("g2"))
    world.serve("old")
    sound = decisions.plan

    def breaks(snapshot: Snapshot) -> Any:
        if any(request.name == "bad" for request in snapshot.deployments):
            raise ArithmeticError("division by zero")
        return sound(snapshot)

    monkeypatch.setattr(decisions, "plan", breaks)
    world.deploy("bad")
    world.deploy("good", replicas=0)
    world.settle()
    told = world.condition("bad", "Planned")
    assert (told["status"], told["reason"]) == ("False", "PlannerFailed")
    assert "division by zero" in told["message"]
    assert world.condition("good", "Planned")["status"] == "True"
    assert world.condition("old", "Ready")["status"] == "True"


def test_a_resource_with_pods_that_planning_breaks_on_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(gpu_node("g1"))
    world.serve("small")
    before = dict(world.pods)

    def breaks(snapshot: Snapshot) -> Any:
        if snapshot.deployments:
            raise ArithmeticError("division by zero")
        return {}

    monkeypatch.setattr(decisions, "plan", breaks)
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Available")["status"] == "True"
    monkeypatch.undo()
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_roll_out_that_planning_breaks_on_leaves_its_pods_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(gpu_node("g1"), gpu_node("g2"))
    world.serve("small")
    before = dict(world.pods)

    def breaks(snapshot: Snapshot) -> Any:
        raise ArithmeticError("division by zero")

    monkeypatch.setattr(steering, "plan", breaks)
    world.deploy("other")
    world.settle()
    world.edit("small", workload={"maxConcurrentSequences": 4})
    world.settle()
    told = world.condition("small", "Planned")
    assert (told["status"], told["reason"]) == ("False", "PlannerFailed")
    assert before.items() <= world.pods.items()
    assert world.condition("small", "Available")["status"] == "True"
    assert len(world.worker_pods("other")) == 1
