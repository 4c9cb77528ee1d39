"""The main path, and a kill between any two of its actions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.world import CLAIM, World, cpu_node, facts, gpu_node, kinds


def test_the_whole_path_in_its_order() -> None:
    world = World(cpu_node("a"), gpu_node("g"))
    world.deploy("small")
    world.settle()
    world.end_inspection("small", facts().pack())
    world.settle()
    world.run_pods()
    world.settle()
    assert kinds(action for _, action in world.history) == [
        "WriteStatus",
        "CreatePod",
        "WriteRevision",
        "WriteStatus",
        "DeletePod",
        "CreatePod",
        "ApplyObject",
        "WriteStatus",
        "WriteStatus",
    ]
    assert world.condition("small", "Ready")["status"] == "True"
    assert [event.reason for event in world.events] == ["ModelResolved", "Planned", "Ready"]
    [pod] = world.worker_pods()
    assert f"pod {pod['metadata']['name']} on node g" in world.events[1].message


def test_the_plan_is_in_status_before_any_pod() -> None:
    world = World(gpu_node("g"))
    world.deploy("small")
    world.settle()
    world.end_inspection("small", facts().pack())
    actions = kinds(world.outcome("small").actions)
    assert actions.index("WriteRevision") < actions.index("WriteStatus") < actions.index("CreatePod")


def _life(world: World) -> list[Any]:
    """A story with every kind of change, as steps."""
    return [
        lambda: world.deploy("one", HUB_TWO),
        lambda: world.inspect_pods("one") and world.end_inspection("one", facts().pack()),
        lambda: world.deploy("two", CLAIM),
        world.provide_claim,
        lambda: world.inspect_pods("two") and world.end_inspection("two", facts(revision="dead").pack()),
        world.run_pods,
        lambda: world.edit("one", replicas=3),
        world.run_pods,
        lambda: world.edit("one", workload={"maxConcurrentSequences": 4}),
        world.run_pods,
        lambda: world.edit("two", suspend=True),
        lambda: world.edit("two", suspend=False),
        world.run_pods,
        lambda: world.edit("one", replicas=1),
    ]


HUB_TWO = {"model": {"huggingFace": {"repo": "acme/small"}}, "replicas": 2}


def _outcome(world: World) -> dict[str, Any]:
    """What must be the same however the operator was killed. Attempts count creations, so they may differ."""

    def place(pod: dict[str, Any]) -> tuple[str, str, str]:
        labels = pod["metadata"]["labels"]
        return (
            labels["plimsoll.dev/revision"],
            labels["plimsoll.dev/replica"],
            pod["spec"].get("nodeName", ""),
        )

    return {
        "pods": sorted(place(pod) for pod in world.worker_pods()),
        "inspecting": sorted(pod["metadata"]["name"] for pod in world.inspect_pods()),
        "services": sorted(world.services),
        "revisions": sorted(world.revisions),
        "conditions": {
            name: {
                entry["type"]: (entry["status"], entry["reason"])
                for entry in world.status(name)["conditions"]
            }
            for name in world.resources
        },
        "plans": {name: [plan["id"] for plan in world.status(name)["plans"]] for name in world.resources},
    }


def _world() -> World:
    return World(cpu_node("a"), gpu_node("g1", 2), gpu_node("g2", 2))


def _undisturbed() -> dict[str, Any]:
    world = _world()
    for change in _life(world):
        change()
        world.settle()
    return _outcome(world)


@pytest.mark.parametrize("stop_after", range(8))
def test_killed_at_any_action_the_end_is_the_same(stop_after: int) -> None:
    world = _world()
    for change in _life(world):
        change()
        world.step(stop_after=stop_after)
        world.restart()
        world.settle()
        assert all(count <= 2 for count in world.gpus_promised().values())
    assert _outcome(world) == _undisturbed()


def test_a_restart_disturbs_no_pod() -> None:
    world = World(cpu_node("a"), gpu_node("g"))
    world.serve("small")
    before = copy.deepcopy(world.pods)
    world.restart()
    world.settle()
    assert world.pods == before


def test_a_lost_status_is_written_again_without_touching_pods() -> None:
    world = World(gpu_node("g"))
    world.serve("small")
    before = copy.deepcopy(world.pods)
    del world.resources["small"]["status"]
    world.restart()
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Ready")["status"] == "True"
    assert world.status("small")["plans"][0]["placements"] == [
        {"replica": 0, "stage": 0, "node": "g", "gpus": 1}
    ]


def test_a_new_default_image_touches_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from tests.unit.cluster import world as module

    world = World(gpu_node("g"))
    world.serve("small")
    before = copy.deepcopy(world.pods)
    monkeypatch.setattr(module, "TERMS", dataclasses.replace(module.TERMS, worker_image="worker:2"))
    world.restart()
    assert world.step() == 0
    assert world.pods == before


def test_a_resource_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    world = World(gpu_node("g"))
    world.serve("small")
    world.terminate(world.resources["small"])
    del world.pods[world.worker_pods()[0]["metadata"]["name"]]
    assert world.outcome("small").actions == ()


def test_a_spec_that_does_not_parse_is_a_condition_naming_the_field() -> None:
    world = World(gpu_node("g"))
    world.deploy("small", replicas="many")
    world.settle()
    told = world.condition("small", "Ready")
    assert (told["status"], told["reason"]) == ("False", "InvalidSpec")
    assert "spec.replicas" in told["message"]
    assert not world.pods


def test_a_damaged_status_is_composed_anew() -> None:
    world = World(gpu_node("g"))
    world.serve("small")
    world.resources["small"]["status"] = {"plans": "nonsense", "conditions": [{"type": 7}]}
    world.settle()
    assert world.condition("small", "Ready")["status"] == "True"
    assert len(world.worker_pods()) == 1


def test_plan_only_plans_and_starts_nothing() -> None:
    world = World(cpu_node("a"), gpu_node("g"))
    world.serve("small", plan={"mode": "PlanOnly"})
    assert world.status("small")["plans"]
    assert not world.worker_pods()
    assert not world.services
    assert world.condition("small", "Ready")["reason"] == "PlanOnly"


def test_nothing_fits_is_told_with_bytes() -> None:
    world = World(cpu_node("a"))
    world.serve("small")
    told = world.condition("small", "Planned")
    assert told["status"] == "False"
    assert not world.worker_pods()
    assert "PlanRejected" in [event.reason for event in world.events]


def test_a_service_deleted_or_edited_by_hand_comes_back() -> None:
    world = World(gpu_node("g"))
    world.serve("small")
    del world.services["small"]
    assert kinds(world.outcome("small").actions) == ["WriteStatus", "ApplyObject"]
    world.step()
    assert world.condition("small", "Ready")["reason"] == "Exposing", "nobody reaches it now"
    del world.services["small"]
    wake = world.outcome("small").wake_at
    assert wake is not None
    assert (wake - world.now).total_seconds() == 1, "the arrival of a Service wakes nobody"
    world.settle()
    assert world.condition("small", "Ready")["status"] == "True"
    world.services["small"]["spec"]["ports"][0]["port"] = 1
    world.settle()
    assert world.services["small"]["spec"]["ports"][0]["port"] == 8000


def test_conditions_keep_their_time_while_they_do_not_flip() -> None:
    world = World(gpu_node("g"))
    world.serve("small")
    since = world.condition("small", "Ready")["lastTransitionTime"]
    world.pass_time(minutes=5)
    world.edit("small", suspend=False)
    world.settle()
    assert world.status("small")["observedGeneration"] == 2
    assert world.condition("small", "Ready")["lastTransitionTime"] == since
