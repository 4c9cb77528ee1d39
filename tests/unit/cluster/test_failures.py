"""What fails, how often it is tried again, and what planning learns from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.test_rollout import by_revision, roll
from tests.unit.cluster.world import World, facts, gpu_node

from plimsoll_worker.launch import ExitCode, ExitReason

OUT_OF_MEMORY = ExitReason(reason=ExitCode.CUDA_OUT_OF_MEMORY, message="12 MiB short at warm-up").to_json()


def served(*nodes: dict[str, Any], **spec: Any) -> World:
    world = World(*nodes)
    world.serve("small", **spec)
    return world


def only(world: World) -> dict[str, Any]:
    [pod] = world.worker_pods()
    return pod


def told(world: World) -> dict[str, Any]:
    [status] = world.status("small")["replicaStatuses"]
    return dict(status)


def fail(world: World, pod: dict[str, Any], reason: str = "UnexpectedAdmissionError", **more: Any) -> None:
    """The pod ends for good."""
    pod["status"] = {"phase": "Failed", "reason": reason, "message": "the node said so"} | more


# --- the budget -----------------------------------------------------------------------------------


def test_restarts_in_place_are_counted_off_the_pod_also_those_nobody_saw() -> None:
    world = served(gpu_node("g1", 1))
    world.crash(only(world), restarts=2)
    world.settle()
    assert told(world)["restarts"] == 2
    world.restart()
    world.crash(only(world), restarts=4)
    world.settle()
    assert told(world)["restarts"] == 4


def test_a_replica_that_keeps_failing_is_given_up_and_its_gpu_is_free_for_others() -> None:
    world = served(gpu_node("g1", 1))
    world.crash(only(world), "no such file", restarts=5)
    world.settle()
    assert not world.worker_pods()
    status = told(world)
    assert (status["givenUp"], status["restarts"]) == (True, 5)
    assert status["lastFailure"]["message"] == "no such file"
    for kind, reason in (
        ("Ready", "Error"),
        ("Progressing", "RestartBudgetExhausted"),
        ("Degraded", "Error"),
    ):
        assert world.condition("small", kind)["reason"] == reason
    assert "plimsoll.dev/retry" in world.condition("small", "Ready")["message"]
    assert [event.reason for event in world.events].count("RestartBudgetExhausted") == 1
    world.serve("other")
    assert world.condition("other", "Ready")["status"] == "True"


def test_given_up_outlives_the_operator() -> None:
    world = served(gpu_node("g1", 1))
    world.crash(only(world), restarts=5)
    world.settle()
    world.restart()
    world.pass_time(hours=1)
    world.settle()
    assert not world.worker_pods()
    assert told(world)["givenUp"]


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.annotate("small", retry="1"),
        lambda world: world.edit("small", workload={"maxConcurrentSequences": 4}),
    ],
    ids=["annotation", "spec"],
)
def test_a_person_can_have_it_tried_again(change: Any) -> None:
    world = served(gpu_node("g1", 1))
    world.crash(only(world), restarts=5)
    world.settle()
    change(world)
    world.settle()
    assert (told(world)["givenUp"], told(world)["restarts"]) == (False, 0)
    world.run_pods()
    world.settle()
    assert world.condition("small", "Ready")["status"] == "True"


def test_the_same_value_of_the_annotation_retries_once() -> None:
    world = served(gpu_node("g1", 1))
    world.annotate("small", retry="1")
    world.settle()
    world.crash(only(world), restarts=5)
    world.settle()
    assert told(world)["givenUp"]
    assert not world.worker_pods()


def test_ten_minutes_of_answering_make_restarts_good() -> None:
    world = served(gpu_node("g1", 1))
    world.crash(only(world), restarts=4)
    world.settle()
    pod = only(world)
    del pod["status"]
    world.run_pods()
    pod["status"]["containerStatuses"][0]["restartCount"] = 4
    world.settle()
    assert told(world)["restarts"] == 4
    wake = world.outcome("small").wake_at
    assert wake is not None
    assert (wake - world.now).total_seconds() == 600
    world.pass_time(seconds=600)
    world.settle()
    assert told(world)["restarts"] == 0
    world.crash(pod, restarts=5)
    world.settle()
    assert (told(world)["restarts"], told(world)["givenUp"]) == (1, False)


def test_pods_that_end_for_good_are_replaced_with_growing_pauses_and_then_given_up() -> None:
    world = served(gpu_node("g1", 1), rollout={"maxRestarts": 2})
    for attempt, pause in enumerate((10, 20)):
        fail(world, only(world))
        world.settle()
        assert only(world)["metadata"]["labels"]["plimsoll.dev/attempt"] == str(attempt)
        assert told(world)["nextRetryTime"]
        world.pass_time(seconds=pause)
        world.settle()
        assert told(world)["restarts"] == attempt + 1
        world.run_pods()
        world.pass_time(seconds=1)
        only(world)["metadata"]["creationTimestamp"] = world.stamp()
        world.settle()
    fail(world, only(world))
    world.settle()
    assert not world.worker_pods()
    assert told(world)["givenUp"]


def test_a_failure_counts_once_however_often_the_operator_is_killed() -> None:
    world = served(gpu_node("g1", 1))
    fail(world, only(world))
    world.pass_time(seconds=10)
    for stop_after in (1, 1, 2, 1):
        world.step(stop_after=stop_after)
        world.restart()
    world.settle()
    assert told(world)["restarts"] == 1
    assert only(world)["metadata"]["labels"]["plimsoll.dev/attempt"] == "1"


@pytest.mark.parametrize(
    "status",
    [
        {"reason": "Evicted"},
        {"reason": "", "conditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ],
    ids=["by the kubelet", "by the API"],
)
def test_eviction_preemption_and_a_lost_node_cost_nothing(status: dict[str, Any]) -> None:
    world = served(gpu_node("g1", 1), rollout={"maxRestarts": 0})
    fail(world, only(world), **status)
    world.settle()
    assert (told(world)["restarts"], told(world)["givenUp"]) == (0, False)
    assert only(world)["metadata"]["labels"]["plimsoll.dev/attempt"] == "1"


def test_one_replica_given_up_leaves_the_others_alone() -> None:
    world = served(gpu_node("g1", 3), replicas=3)
    victim = sorted(world.worker_pods(), key=lambda pod: pod["metadata"]["name"])[1]
    before = {name: copy.deepcopy(pod) for name, pod in world.pods.items() if pod is not victim}
    world.crash(victim, restarts=5)
    world.settle()
    assert world.pods == before
    assert world.condition("small", "Available")["status"] == "True"
    assert world.condition("small", "Planned")["status"] == "True"
    ready = world.condition("small", "Ready")
    assert ready["status"] == "False"
    assert "replica 1 is given up" in ready["message"]


# --- the node -------------------------------------------------------------------------------------


def test_a_drained_pod_moves_to_another_node_and_not_back() -> None:
    world = served(gpu_node("g1", 1), gpu_node("g2", 1))
    pod = only(world)
    node = pod["spec"]["nodeName"]
    world.nodes[node]["spec"]["unschedulable"] = True
    world.settle()
    assert only(world) is pod, "a cordon is about new pods"
    world.terminate(pod)
    world.settle()
    fresh = next(other for other in world.worker_pods() if other is not pod)
    assert fresh["metadata"]["labels"]["plimsoll.dev/attempt"] == "1"
    del world.pods[pod["metadata"]["name"]]
    world.run_pods()
    world.settle()
    assert only(world)["spec"]["nodeName"] != node
    assert told(world)["restarts"] == 0


def test_a_node_that_lost_gpus_keeps_what_runs_and_gets_nothing_new() -> None:
    world = served(gpu_node("g1", 2), replicas=2)
    before = copy.deepcopy(world.pods)
    world.nodes["g1"]["status"]["allocatable"]["nvidia.com/gpu"] = "1"
    world.settle()
    assert world.pods == before
    victim = next(iter(world.pods))
    del world.pods[victim]
    world.settle()
    assert len(world.worker_pods()) == 1
    planned = world.condition("small", "Planned")
    assert planned["status"] == "False"
    assert "unhealthy" in planned["message"]
    world.nodes["g2"] = gpu_node("g2", 1)
    world.settle()
    assert len(world.worker_pods()) == 2


def strand(world: World, pod: dict[str, Any]) -> None:
    stuck = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "node(s) had a rule of their own",
        "lastTransitionTime": world.stamp(),
    }
    pod["status"] = {"phase": "Pending", "conditions": [stuck]}


def started(*nodes: dict[str, Any], **spec: Any) -> World:
    """Deployed and planned; its pod is not bound yet."""
    world = World(*nodes)
    world.deploy("small", **spec)
    world.settle()
    world.end_inspection("small", facts().pack())
    world.settle()
    return world


def test_a_node_that_takes_no_pod_stays_excluded_when_the_operator_restarts() -> None:
    world = started(gpu_node("g1", 1), gpu_node("g2", 1))
    first = world.status("small")["plans"][0]["placements"][0]["node"]
    strand(world, only(world))
    world.pass_time(seconds=61)
    world.step()
    world.restart()
    world.settle()
    [exclusion] = world.status("small")["exclusions"]
    assert (exclusion["node"], exclusion["reason"]) == (first, "Unschedulable")
    assert world.status("small")["plans"][0]["placements"][0]["node"] != first
    assert told(world)["restarts"] == 0
    world.pass_time(seconds=600)
    world.settle()
    assert "exclusions" not in world.status("small") or not world.status("small")["exclusions"]


@pytest.mark.parametrize("replan", ["OnSpecChange", "Manual"])
def test_replan_only_by_the_spec_leaves_a_stranded_pod_where_it_was_planned(replan: str) -> None:
    world = started(gpu_node("g1", 1), gpu_node("g2", 1), plan={"replan": replan})
    pod = only(world)
    strand(world, pod)
    world.pass_time(seconds=3600)
    world.settle()
    assert only(world) is pod
    assert world.condition("small", "Scheduled")["reason"] == "Unschedulable"


# --- what is learned ------------------------------------------------------------------------------


def test_after_out_of_memory_the_next_plan_differs_and_says_so() -> None:
    world = served(gpu_node("g1", 1))
    first = world.status("small")["plans"][0]
    world.crash(only(world), OUT_OF_MEMORY, restarts=0)
    roll(world)
    status = world.status("small")
    assert world.condition("small", "Ready")["status"] == "True"
    plan = status["plans"][0]
    assert plan["maxBatchedTokens"] < first["maxBatchedTokens"]
    [exclusion] = status["exclusions"]
    assert exclusion["reason"] == "CUDAOutOfMemory"
    assert exclusion["configuration"].startswith("BF16 TP1xPP1 on NVIDIA-L4")
    assert "until" not in exclusion
    assert "12 MiB short" in world.condition("small", "Planned")["message"]
    assert "Excluded" in [event.reason for event in world.events]


def test_each_out_of_memory_excludes_one_more_and_nothing_is_tried_twice() -> None:
    world = served(gpu_node("g1", 1))
    tried = []
    for _ in range(12):
        [pod] = world.worker_pods()
        tried.append(world.status("small")["plans"][-1]["maxBatchedTokens"])
        world.crash(pod, OUT_OF_MEMORY, restarts=0)
        world.settle()
        world.restart()
        world.run_pods()
        world.settle()
        if world.condition("small", "Planned")["status"] == "False":
            break
    assert len(tried) == len(set(tried)) > 1
    rejected = world.condition("small", "Planned")
    assert rejected["reason"] == "RanOutOfMemory"
    assert "memoryHeadroomPercent" in rejected["message"]
    assert len(world.status("small")["exclusions"]) == len(tried)


def test_the_old_configuration_serves_until_the_other_one_answers() -> None:
    world = served(gpu_node("g1", 3), replicas=2)
    old = world.status("small")["currentRevision"]
    world.crash(world.worker_pods()[0], OUT_OF_MEMORY, restarts=0)
    world.settle()
    new = world.status("small")["updateRevision"]
    assert by_revision(world) == {old: 2, new: 1}
    roll(world)
    assert by_revision(world) == {new: 2}


def test_replan_on_spec_change_keeps_the_configuration_that_ran_out_of_memory() -> None:
    world = served(gpu_node("g1", 1), plan={"replan": "OnSpecChange"})
    name = only(world)["metadata"]["name"]
    world.crash(only(world), OUT_OF_MEMORY, restarts=1)
    world.settle()
    assert only(world)["metadata"]["name"] == name
    assert not world.status("small")["exclusions"]


def test_a_retry_forgets_exclusions() -> None:
    world = served(gpu_node("g1", 1))
    first = world.status("small")["currentRevision"]
    world.crash(only(world), OUT_OF_MEMORY, restarts=0)
    roll(world)
    world.annotate("small", retry="now")
    roll(world)
    assert world.status("small")["currentRevision"] == first
    assert not world.status("small")["exclusions"]
    assert world.status("small")["retried"] == "now"


# --- manual plans ---------------------------------------------------------------------------------


def test_manual_holds_a_changed_spec_back_until_it_is_asked_for() -> None:
    world = served(gpu_node("g1", 2), plan={"replan": "Manual"})
    before = copy.deepcopy(world.pods)
    world.edit("small", workload={"maxConcurrentSequences": 4})
    world.settle()
    assert world.pods == before
    held = world.condition("small", "Ready")
    assert (held["status"], held["reason"]) == ("False", "ReplanHeld")
    assert "plimsoll.dev/replan" in held["message"]
    assert world.condition("small", "Available")["status"] == "True"
    world.annotate("small", replan="1")
    assert min(roll(world)) == 1
    assert world.condition("small", "Ready")["status"] == "True"
    assert before.keys().isdisjoint(world.pods)


def test_manual_still_scales_and_heals() -> None:
    world = served(gpu_node("g1", 3), plan={"replan": "Manual"})
    world.edit("small", replicas=3)
    world.settle()
    assert len(world.worker_pods()) == 3
    del world.pods[world.worker_pods()[0]["metadata"]["name"]]
    world.settle()
    assert len(world.worker_pods()) == 3


def test_the_annotation_replan_plans_anew_under_any_policy() -> None:
    world = served(gpu_node("g1", 2))
    old = world.status("small")["currentRevision"]
    world.annotate("small", replan="better GPUs came")
    assert min(roll(world)) == 1
    assert world.status("small")["currentRevision"] != old
    world.restart()
    assert world.step() == 0
