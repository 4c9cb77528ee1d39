"""Planning for all resources together, and around one that planning breaks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.cluster.world import HUB, World, cpu_node, facts, gpu_node

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


# --- what was planned already


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """Each plan over all resources that is made."""
    made: list[Snapshot] = []
    sound = decisions.plan

    def counted(snapshot: Snapshot) -> Any:
        made.append(snapshot)
        return sound(snapshot)

    monkeypatch.setattr(decisions, "plan", counted)
    return made


def crowded() -> World:
    """Two deployments and one GPU, and a node that is left out for one that waits."""
    world = World(gpu_node("g1"))
    world.serve("first")
    world.deploy("second")
    world.settle()
    assert world.condition("second", "Planned")["reason"] == "InsufficientGPUs"
    return world


def test_a_round_in_which_nothing_changed_that_planning_reads_plans_nothing(plans: list[Snapshot]) -> None:
    world = crowded()
    plans.clear()
    world.pass_time(minutes=5)
    world.annotate("second", note="planning does not see it")
    world.settle()
    assert plans == []
    assert world.condition("second", "Planned")["reason"] == "InsufficientGPUs"


def frees(world: World) -> None:
    world.edit("first", replicas=0)


def leaves(world: World) -> None:
    del world.resources["first"]
    world.pods = {name: pod for name, pod in world.pods.items() if not name.startswith("first-")}


def grows(world: World) -> None:
    world.nodes["g2"] = gpu_node("g2")


def asks_for_none(world: World) -> None:
    world.nodes["c"] = cpu_node("c")
    world.edit("second", placement={"device": "CPU"})


@pytest.mark.parametrize("change", [frees, leaves, grows, asks_for_none], ids=lambda change: change.__name__)
def test_what_was_rejected_is_planned_when_that_may_help(change: Callable[[World], None]) -> None:
    world = crowded()
    change(world)
    world.settle()
    world.run_pods()
    world.settle()
    assert world.condition("second", "Ready")["status"] == "True"


def test_what_was_rejected_is_planned_when_the_time_of_an_exclusion_is_over(plans: list[Snapshot]) -> None:
    world = World(gpu_node("g1"))
    world.deploy("small", HUB)
    world.settle()
    world.end_inspection("small", facts().pack())
    world.settle()
    [pod] = world.worker_pods()
    pod["status"] = {
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available",
                "lastTransitionTime": world.stamp(),
            }
        ]
    }
    world.pass_time(seconds=61)
    world.settle()
    assert world.condition("small", "Planned")["status"] == "False"
    plans.clear()
    world.pass_time(minutes=5)
    world.settle()
    assert plans == []
    world.pass_time(minutes=6)
    world.settle()
    assert world.condition("small", "Planned")["status"] == "True"
