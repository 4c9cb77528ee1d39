"""Roll-outs: surge where there is room, recreate where there is none, and never less than was asked for when
that can be helped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.world import CLAIM, World, cpu_node, facts, gpu_node

from plimsoll.cluster.observed import CreatePod, DeletePod
from plimsoll_worker.launch import CAPABILITIES

CHANGE: dict[str, Any] = {"workload": {"maxConcurrentSequences": 4}}


def served(*nodes: dict[str, Any], **spec: Any) -> World:
    world = World(*nodes)
    world.serve("small", **spec)
    return world


def by_revision(world: World) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pod in world.worker_pods():
        name = pod["metadata"]["labels"]["plimsoll.dev/revision"]
        counts[name] = counts.get(name, 0) + 1
    return counts


def answering(world: World) -> int:
    return sum(
        {"type": "Ready", "status": "True"}.items() <= entry.items()
        for pod in world.worker_pods()
        if "deletionTimestamp" not in pod["metadata"]
        for entry in pod.get("status", {}).get("conditions", [])
    )


def roll(world: World, rounds: int = 20) -> list[int]:
    """Step by step to the end; how many replicas answered after each step."""
    told = []
    for _ in range(rounds):
        world.run_pods()
        done = world.step()
        told.append(answering(world))
        assert all(
            count <= int(world.nodes[node]["status"]["allocatable"].get("nvidia.com/gpu", 99))
            for node, count in world.gpus_promised().items()
        )
        if not done:
            return told
    raise AssertionError(f"not rolled out after {rounds} rounds: {by_revision(world)}")


def test_with_room_for_one_more_it_never_serves_less_than_was_asked_for() -> None:
    world = served(gpu_node("g1", 4), replicas=3)
    old = world.status("small")["currentRevision"]
    world.edit("small", **CHANGE)
    told = roll(world)
    assert min(told) == 3
    status = world.status("small")
    assert old != status["currentRevision"] == status["updateRevision"]
    assert by_revision(world) == {status["currentRevision"]: 3}
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_surge_takes_one_replica_more_at_a_time_and_says_so_beforehand() -> None:
    world = served(gpu_node("g1", 8), replicas=3)
    old = world.status("small")["currentRevision"]
    world.edit("small", **CHANGE)
    world.settle()
    new = world.status("small")["updateRevision"]
    assert by_revision(world) == {old: 3, new: 1}
    told = world.condition("small", "Progressing")
    assert (told["status"], told["reason"]) == ("True", "Surging")
    assert "stops only when a new one answers" in told["message"]
    assert [plan["revision"] for plan in world.status("small")["plans"]] == [old, new]
    assert "Surging" in [event.reason for event in world.events]


def test_without_room_one_old_replica_goes_first_and_it_is_said_before() -> None:
    world = served(gpu_node("g1", 2), replicas=2)
    old = world.status("small")["currentRevision"]
    world.edit("small", **CHANGE)
    actions = world.outcome("small").actions
    kinds = [type(action).__name__ for action in actions]
    assert kinds.index("WriteStatus") < kinds.index("DeletePod")
    assert sum(isinstance(action, DeletePod) for action in actions) == 1
    assert not any(isinstance(action, CreatePod) for action in actions), "its room is not free yet"
    for pod in world.worker_pods():
        if pod["metadata"]["name"] == next(a.name for a in actions if isinstance(a, DeletePod)):
            world.terminate(pod)
    world.settle()
    told = world.condition("small", "Progressing")
    assert (told["status"], told["reason"]) == ("True", "Recreating")
    assert "no room for one replica more" in told["message"]
    assert by_revision(world) == {old: 2}, "the terminating pod holds its room"
    assert world.condition("small", "Planned")["status"] == "True"


def test_without_room_it_goes_on_one_by_one_to_the_end() -> None:
    world = served(gpu_node("g1", 2), replicas=2)
    world.edit("small", **CHANGE)
    told = roll(world)
    assert min(told) == 1, "one stops at a time"
    status = world.status("small")
    assert by_revision(world) == {status["updateRevision"]: 2}
    assert world.condition("small", "Ready")["status"] == "True"
    assert list(world.revisions) == [status["updateRevision"]], "what nothing uses is cleaned up"


def test_strategy_recreate_stops_first_though_there_is_room() -> None:
    world = served(gpu_node("g1", 8), replicas=2)
    world.edit("small", rollout={"strategy": "Recreate"}, **CHANGE)
    assert min(roll(world)) == 1
    assert world.condition("small", "Ready")["status"] == "True"


def test_strategy_surge_waits_for_room_and_says_so() -> None:
    world = served(gpu_node("g1", 2), replicas=2)
    before = copy.deepcopy(world.pods)
    world.edit("small", rollout={"strategy": "Surge"}, **CHANGE)
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Planned")["reason"] == "InsufficientGPUs"
    told = world.condition("small", "Progressing")
    assert told["status"] == "False"
    assert "rollout.strategy is Surge" in told["message"]
    assert world.condition("small", "Available")["status"] == "True"
    world.nodes["g2"] = gpu_node("g2", 1)
    assert min(roll(world)) == 2
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_change_of_strategy_or_budget_replaces_no_pod() -> None:
    world = served(gpu_node("g1", 2))
    before = copy.deepcopy(world.pods)
    world.edit("small", rollout={"strategy": "Surge", "maxRestarts": 9, "progressDeadlineSeconds": 60})
    world.settle()
    assert world.pods == before


def test_a_new_revision_that_fits_nowhere_leaves_the_old_one_serving() -> None:
    world = served(gpu_node("g1", 1), gpu_node("g2", 2))
    before = copy.deepcopy(world.pods)
    world.edit("small", placement={"accelerators": {"minMemory": "200Gi"}})
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Planned")["status"] == "False"
    assert world.condition("small", "Available")["status"] == "True"
    assert world.condition("small", "Ready")["status"] == "False"


def test_a_failed_new_revision_leaves_the_old_one_serving() -> None:
    world = served(gpu_node("g1", 3), replicas=2)
    old = world.status("small")["currentRevision"]
    world.edit("small", rollout={"maxRestarts": 1}, **CHANGE)
    world.settle()
    new = world.status("small")["updateRevision"]
    world.run_pods()
    fresh = next(pod for pod in world.worker_pods() if new in pod["metadata"]["name"])
    world.crash(fresh, "no such file", restarts=0)
    world.settle()
    assert by_revision(world) == {old: 2, new: 1}
    assert world.condition("small", "Progressing")["reason"] == "Restarting"
    world.crash(fresh, "no such file", restarts=1)
    world.settle()
    assert by_revision(world) == {old: 2}
    assert world.condition("small", "Available")["status"] == "True"
    told = world.condition("small", "Progressing")
    assert (told["status"], told["reason"]) == ("False", "RestartBudgetExhausted")
    assert "no such file" in told["message"]
    assert "plimsoll.dev/retry" in told["message"]


def test_an_old_replica_that_dies_meanwhile_is_healed_from_its_own_revision() -> None:
    world = served(gpu_node("g1", 3), replicas=2)
    old = world.status("small")["currentRevision"]
    world.edit("small", **CHANGE)
    world.settle()
    new = world.status("small")["updateRevision"]
    victim = next(pod for pod in world.worker_pods() if old in pod["metadata"]["name"])
    del world.pods[victim["metadata"]["name"]]
    world.settle()
    assert by_revision(world) == {old: 2, new: 1}
    world.run_pods()
    assert min(roll(world)) == 2
    assert by_revision(world) == {new: 2}


def test_a_change_during_a_roll_out_keeps_what_serves_and_drops_what_never_did() -> None:
    world = served(gpu_node("g1", 3), replicas=2)
    first = world.status("small")["currentRevision"]
    world.edit("small", **CHANGE)
    world.settle()
    second = world.status("small")["updateRevision"]
    world.edit("small", workload={"maxConcurrentSequences": 2})
    world.settle()
    third = world.status("small")["updateRevision"]
    assert by_revision(world) == {first: 2, third: 1}
    assert second not in world.revisions
    assert min(roll(world)) == 2
    assert by_revision(world) == {third: 2}


def test_going_back_to_the_old_spec_keeps_the_old_pods() -> None:
    world = served(gpu_node("g1", 2))
    before = copy.deepcopy(world.pods)
    world.edit("small", **CHANGE)
    world.settle()
    world.edit("small", workload={})
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Ready")["status"] == "True"


@pytest.mark.parametrize("stop_after", range(6))
@pytest.mark.parametrize("gpus", [2, 3])
def test_killed_at_any_action_of_a_roll_out_the_end_is_the_same(stop_after: int, gpus: int) -> None:
    world = served(gpu_node("g1", gpus), replicas=2)
    world.edit("small", **CHANGE)
    for _ in range(30):
        world.step(stop_after=stop_after)
        world.restart()
        assert world.gpus_promised()["g1"] <= gpus
        assert answering(world) >= gpus - 1
        world.run_pods()
        world.step()
    status = world.status("small")
    assert by_revision(world) == {status["updateRevision"]: 2}
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_wider_plan_takes_as_many_old_replicas_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = CAPABILITIES.model_copy(update={"max_tensor_parallel": 2})
    monkeypatch.setattr("plimsoll.cluster.case.CAPABILITIES", wide)
    world = served(gpu_node("g1", 5), replicas=4)
    old = world.status("small")["currentRevision"]
    world.edit("small", replicas=2, parallelism={"tensor": 2})
    assert min(roll(world)) == 2, "two old ones are not needed any longer, and their GPUs hold a new one"
    status = world.status("small")
    assert by_revision(world) == {status["updateRevision"]: 2}
    assert status["plans"][0]["tensorParallel"] == 2
    assert old not in world.revisions


def test_cpu_replicas_roll_out_too() -> None:
    world = World(cpu_node("a"))
    world.provide_claim()
    world.serve("small", CLAIM)
    world.edit("small", **CHANGE)
    roll(world)
    status = world.status("small")
    assert by_revision(world) == {status["updateRevision"]: 1}


def test_while_the_new_model_is_not_known_the_old_one_serves_and_heals() -> None:
    world = served(gpu_node("g1", 2))
    old = world.status("small")["currentRevision"]
    world.edit("small", model={"huggingFace": {"repo": "acme/other"}})
    world.settle()
    world.pods = {name: pod for name, pod in world.pods.items() if "inspect" in name}
    world.settle()
    assert by_revision(world) == {old: 1}
    world.run_pods()
    world.end_inspection("small", facts(revision="beef").pack())
    assert min(roll(world)) == 1
    assert by_revision(world) == {world.status("small")["updateRevision"]: 1}


def test_a_stuck_roll_out_is_told_after_its_deadline_and_the_old_one_serves() -> None:
    world = served(gpu_node("g1", 2), rollout={"progressDeadlineSeconds": 60})
    world.pass_time(seconds=3600)
    world.edit("small", **CHANGE)
    world.settle()
    assert world.condition("small", "Progressing")["status"] == "True", "the clock starts with the change"
    wake = world.outcome("small").wake_at
    assert wake is not None
    assert (wake - world.now).total_seconds() == 60
    world.pass_time(seconds=60)
    world.settle()
    told = world.condition("small", "Progressing")
    assert (told["status"], told["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert "longer than 60 s" in told["message"]
    assert world.condition("small", "Degraded")["status"] == "True"
    assert world.condition("small", "Available")["status"] == "True"
    assert min(roll(world)) == 1
    assert world.condition("small", "Ready")["status"] == "True", "late is not never"


def test_the_default_deadline_grows_with_the_bytes_to_load() -> None:
    world = served(gpu_node("g1", 1))
    world.edit("small", **CHANGE)
    for pod in world.worker_pods():
        del world.pods[pod["metadata"]["name"]]
    world.settle()
    wake = world.outcome("small").wake_at
    assert wake is not None
    assert (wake - world.now).total_seconds() == 1800
