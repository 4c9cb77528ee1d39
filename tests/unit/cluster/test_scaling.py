"""Scale up and down: what runs stays, and the replica goes that is missed the least."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.world import World, gpu_node

from plimsoll.api.v1alpha1 import PlanPlacement
from plimsoll.cluster.standing import Standing, most_worth
from plimsoll_worker.launch import CAPABILITIES


def _standing(
    replica: int, node: str, *, ready: bool = True, failed: bool = False, gpus: int = 1
) -> Standing:
    place = PlanPlacement(replica=replica, stage=0, node=node, gpus=gpus)
    return Standing("rev", replica, ready, failed, (place,))


@pytest.mark.parametrize(
    ("replicas", "free", "gone"),
    [
        ([_standing(0, "a"), _standing(1, "b"), _standing(2, "c")], {}, 2),
        ([_standing(0, "a"), _standing(1, "b"), _standing(2, "c")], {"b": 3}, 1),
        ([_standing(0, "a", gpus=4), _standing(1, "b")], {"b": 2}, 0),
        ([_standing(0, "a"), _standing(1, "b", ready=False), _standing(2, "c")], {"c": 7}, 1),
        ([_standing(0, "a", ready=False, failed=True), _standing(1, "b", ready=False)], {"b": 7}, 0),
    ],
    ids=["the highest", "the largest slot", "its own GPUs count", "not ready before slots", "failed first"],
)
def test_the_replica_that_is_missed_the_least_goes(
    replicas: list[Standing], free: dict[str, int], gone: int
) -> None:
    kept = most_worth(replicas, len(replicas) - 1, free)
    assert {one.replica for one in replicas} - {one.replica for one in kept} == {gone}


def served(*nodes: dict[str, Any], **spec: Any) -> World:
    world = World(*nodes)
    world.serve("small", **spec)
    return world


def numbers(world: World) -> list[int]:
    return sorted(int(pod["metadata"]["labels"]["plimsoll.dev/replica"]) for pod in world.worker_pods())


def test_scaling_down_empties_the_node_that_becomes_the_largest_slot() -> None:
    world = served(gpu_node("g1", 2), gpu_node("g2", 4), replicas=3)
    by_node: dict[str, list[int]] = {}
    for pod in world.worker_pods():
        number = int(pod["metadata"]["labels"]["plimsoll.dev/replica"])
        by_node.setdefault(pod["spec"]["nodeName"], []).append(number)
    assert sorted(map(len, by_node.values())) == [1, 2]
    alone = next(numbers for numbers in by_node.values() if len(numbers) == 1)
    world.edit("small", replicas=2)
    world.settle()
    left = [number for number in (0, 1, 2) if number not in alone]
    assert numbers(world) == left, "g2 has four GPUs free together now"
    world.restart()
    assert world.step() == 0, "the numbers of those left do not move them"


def test_scaling_up_fills_the_gap_and_touches_nobody() -> None:
    world = served(gpu_node("g1", 2), gpu_node("g2", 4), replicas=3)
    world.edit("small", replicas=2)
    world.settle()
    before = copy.deepcopy(world.pods)
    world.edit("small", replicas=3)
    world.settle()
    assert numbers(world) == [0, 1, 2]
    assert before.items() <= world.pods.items()


def test_suspend_and_resume_keep_the_plan_and_forget_failures() -> None:
    world = served(gpu_node("g1", 1))
    plan = world.status("small")["plans"][0]["id"]
    world.crash(world.worker_pods()[0], restarts=5)
    world.settle()
    world.edit("small", suspend=True)
    world.settle()
    assert not world.worker_pods()
    assert world.status("small")["replicaStatuses"] == []
    assert world.status("small")["plans"][0]["id"] == plan
    world.edit("small", suspend=False)
    world.settle()
    world.run_pods()
    world.settle()
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_scale_down_during_a_roll_out_ends_at_what_is_asked_for() -> None:
    world = served(gpu_node("g1", 4), replicas=3)
    world.edit("small", workload={"maxConcurrentSequences": 4})
    world.settle()
    world.edit("small", replicas=1)
    for _ in range(6):
        world.run_pods()
        world.settle()
    assert len(world.worker_pods()) == 1
    status = world.status("small")
    assert status["currentRevision"] == status["updateRevision"]
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_scale_up_during_a_roll_out_never_serves_less_than_before() -> None:
    world = served(gpu_node("g1", 6), replicas=2)
    world.edit("small", workload={"maxConcurrentSequences": 4})
    world.settle()
    world.edit("small", replicas=4)
    for _ in range(8):
        world.run_pods()
        world.settle()
        assert world.status("small")["readyReplicas"] >= 2
    assert world.status("small")["readyReplicas"] == 4
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_drain_may_take_one_replica_at_a_time() -> None:
    world = served(gpu_node("g1", 4), replicas=3)
    budget = world.budgets["small"]["spec"]
    assert budget["minAvailable"] == 2
    labels = world.worker_pods()[0]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    world.edit("small", replicas=4)
    world.settle()
    assert world.budgets["small"]["spec"]["minAvailable"] == 3


def test_the_only_replica_may_go_and_is_guarded_once_it_is_not_the_only_one() -> None:
    world = served(gpu_node("g1", 4))
    assert not world.budgets
    for replicas, stay in ((2, 1), (1, 0)):
        world.edit("small", replicas=replicas)
        world.settle()
        assert world.budgets["small"]["spec"]["minAvailable"] == stay


def test_a_drain_may_take_all_stages_of_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = CAPABILITIES.model_copy(update={"max_pipeline_parallel": 2, "multi_node": True})
    monkeypatch.setattr("plimsoll.cluster.case.CAPABILITIES", wide)
    world = served(gpu_node("g1", 4), replicas=2, parallelism={"pipeline": 2})
    assert world.budgets["small"]["spec"]["minAvailable"] == 2
    assert len(world.worker_pods()) == 4
