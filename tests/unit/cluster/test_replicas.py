"""Worker pods against their plan: one row for each thing that can happen to them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.world import CLAIM, START, World, cpu_node, facts, gpu_node

from plimsoll.cluster.observed import EmitEvent, Refusal
from plimsoll_worker.launch import ExitCode, ExitReason


def served(*nodes: dict[str, Any], **spec: Any) -> World:
    world = World(*(nodes or (cpu_node("a"), gpu_node("g1", 2), gpu_node("g2", 2))))
    world.serve("small", **spec)
    return world


def names(world: World) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in world.worker_pods())


def attempts(world: World) -> dict[str, str]:
    return {
        pod["metadata"]["labels"]["plimsoll.dev/replica"]: pod["metadata"]["labels"]["plimsoll.dev/attempt"]
        for pod in world.worker_pods()
    }


def test_scaling_up_leaves_the_first_replica_alone() -> None:
    world = served()
    first = copy.deepcopy(world.worker_pods()[0])
    world.edit("small", replicas=3)
    world.settle()
    assert len(world.worker_pods()) == 3
    assert world.pods[first["metadata"]["name"]] == first
    assert world.status("small")["plans"][0]["revision"] == world.status("small")["updateRevision"]


def test_scaling_down_takes_the_highest_replicas_and_counts() -> None:
    world = served(replicas=3)
    world.edit("small", replicas=1)
    world.settle()
    assert list(attempts(world)) == ["0"]
    status = world.status("small")
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (1, 1, 1)


@pytest.mark.parametrize("change", [{"suspend": True}, {"replicas": 0}, {"plan": {"mode": "PlanOnly"}}])
def test_no_pods_are_kept_when_none_are_wanted(change: dict[str, Any]) -> None:
    world = served()
    world.edit("small", **change)
    world.settle()
    assert not world.worker_pods()
    assert world.services, "the Service stays"
    world.edit("small", suspend=False, replicas=1, plan={"mode": "Apply"})
    world.settle()
    world.run_pods()
    world.settle()
    assert world.condition("small", "Ready")["status"] == "True"


def test_a_pod_deleted_by_hand_comes_back_under_the_next_attempt_told_first() -> None:
    world = served()
    node = world.worker_pods()[0]["spec"]["nodeName"]
    world.pods.clear()
    actions = [action for action in world.outcome("small").actions if not isinstance(action, EmitEvent)]
    assert [type(action).__name__ for action in actions] == ["WriteStatus", "CreatePod"]
    world.settle()
    assert attempts(world) == {"0": "1"}
    assert world.status("small")["replicaStatuses"][0]["attempt"] == 1
    world.run_pods()
    assert world.worker_pods()[0]["spec"]["nodeName"] == node


def test_a_pod_deleted_while_the_operator_was_away_comes_back_under_the_told_attempt() -> None:
    world = served()
    world.pods.clear()
    world.restart()
    world.settle()
    assert attempts(world) == {"0": "0"}


def test_a_terminating_pod_still_holds_its_room() -> None:
    world = served(cpu_node("a"), gpu_node("g1", 1))
    world.terminate(world.worker_pods()[0])
    world.settle()
    assert len(world.worker_pods()) == 1, "no second pod on the same GPU"
    world.pods.clear()
    world.settle()
    assert attempts(world) == {"0": "1"}


def test_a_pod_terminating_on_a_lost_node_is_replaced_elsewhere_at_once() -> None:
    world = served(gpu_node("g1", 1), gpu_node("g2", 1))
    lost = world.worker_pods()[0]
    world.terminate(lost)
    world.nodes[lost["spec"]["nodeName"]]["status"]["conditions"][0]["status"] = "False"
    world.settle()
    fresh = [pod for pod in world.worker_pods() if pod is not lost]
    assert len(fresh) == 1
    assert fresh[0]["metadata"]["labels"]["plimsoll.dev/attempt"] == "1"
    assert not fresh[0]["spec"].get("nodeName")


def test_a_node_that_is_not_ready_for_a_moment_costs_no_replica() -> None:
    world = served()
    before = names(world)
    node = world.worker_pods()[0]["spec"]["nodeName"]
    world.nodes[node]["status"]["conditions"][0]["status"] = "False"
    world.settle()
    assert names(world) == before


def test_what_has_no_place_tells_the_nearest_options_until_it_has_one() -> None:
    world = World(gpu_node("g1", 1))
    world.deploy("small")
    world.deploy("other")
    world.settle()
    for name in ("small", "other"):
        world.end_inspection(name, facts().pack())
    world.settle()
    waiting = next(name for name in ("small", "other") if world.status(name)["rejected"])
    (option,) = world.status(waiting)["rejected"]
    assert option["option"] == "BF16 TP1 on NVIDIA-L4"
    assert option["reason"] == "InsufficientGPUs"
    assert "g1 are taken" in option["message"]
    world.nodes["g2"] = gpu_node("g2", 1)
    world.settle()
    assert world.condition(waiting, "Planned")["status"] == "True"
    assert world.status(waiting)["rejected"] == []


def _stranded(world: World, since: str) -> str:
    pod = world.worker_pods()[0]
    node = world.status("small")["plans"][0]["placements"][0]["node"]
    pod["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 1 Insufficient nvidia.com/gpu",
                "lastTransitionTime": since,
            }
        ],
    }
    return str(node)


def test_an_unschedulable_pod_moves_after_its_deadline_and_never_back() -> None:
    world = World(gpu_node("g1", 1), gpu_node("g2", 1))
    world.deploy("small")
    world.settle()
    world.end_inspection("small", facts().pack())
    world.settle()
    first = _stranded(world, "2026-11-23T04:00:00Z")
    world.settle()
    assert world.condition("small", "Scheduled")["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in world.condition("small", "Scheduled")["message"]
    world.pass_time(seconds=61)
    world.settle()
    second = world.status("small")["plans"][0]["placements"][0]["node"]
    assert second != first
    _stranded(world, "2026-11-23T04:01:01Z")
    world.pass_time(seconds=61)
    world.settle()
    assert not world.worker_pods(), "both nodes are left out: no A, B, A"
    told = world.condition("small", "Planned")
    assert told["status"] == "False"
    assert "left out until" in told["message"]
    world.pass_time(seconds=600)
    world.settle()
    assert world.worker_pods(), "an exclusion ends"


def _crashed(world: World, message: str, *, restarts: int = 3) -> None:
    pod = world.worker_pods()[0]
    ended = {
        "reason": "Error",
        "exitCode": 1,
        "message": message,
        "finishedAt": "2026-11-23T04:00:30Z",
    }
    pod["status"] |= {
        "conditions": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [
            {
                "name": "worker",
                "ready": False,
                "restartCount": restarts,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                "lastState": {"terminated": ended},
            }
        ],
    }


def test_a_crash_is_told_in_the_workers_own_words_and_restarts_in_place() -> None:
    world = served()
    reason = ExitReason(reason=ExitCode.ENGINE_FAILED, message="no kernel for this shape")
    _crashed(world, reason.to_json())
    before = names(world)
    world.settle()
    assert names(world) == before
    replica = world.status("small")["replicaStatuses"][0]
    assert replica["lastFailure"]["reason"] == "EngineFailed"
    assert replica["restarts"] == 3
    ready = world.condition("small", "Ready")
    assert ready["reason"] == "EngineFailed"
    assert "no kernel" in ready["message"]
    assert world.condition("small", "Degraded")["status"] == "True"
    assert [event.reason for event in world.events].count("ReplicaFailed") == 1


def test_a_crash_without_words_is_told_by_its_exit_code() -> None:
    world = served()
    _crashed(world, "")
    world.settle()
    assert "exit code 1" in world.condition("small", "Ready")["message"]


def test_a_missing_image_is_told() -> None:
    world = served()
    waiting = {"reason": "ErrImagePull", "message": "worker:1 not found"}
    world.worker_pods()[0]["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"name": "worker", "state": {"waiting": waiting}}],
    }
    world.settle()
    ready = world.condition("small", "Ready")
    assert (ready["reason"], "worker:1 not found" in ready["message"]) == ("ImagePullBackOff", True)


@pytest.mark.parametrize(("reason", "pause"), [("Evicted", 0), ("UnexpectedAdmissionError", 10)])
def test_a_pod_that_ended_for_good_is_replaced_after_a_back_off_unless_it_is_blameless(
    reason: str, pause: int
) -> None:
    world = served()
    world.worker_pods()[0]["status"] = {"phase": "Failed", "reason": reason, "message": "the node said so"}
    if pause:
        world.settle()
        assert attempts(world) == {"0": "0"}
        wake = world.outcome("small").wake_at
        assert wake is not None
        assert (wake - START).total_seconds() == pause
        world.pass_time(seconds=pause)
    world.settle()
    assert attempts(world) == {"0": "1"}
    assert world.status("small")["replicaStatuses"][0]["lastFailure"]["reason"] == reason


def test_a_refused_pod_is_told_in_the_servers_words_and_waits_for_its_back_off() -> None:
    world = served()
    world.pods.clear()
    from dataclasses import replace
    from datetime import timedelta

    words = 'pods "small" is forbidden: exceeded quota: gpus'
    uid = world.resources["small"]["metadata"]["uid"]
    refusal = Refusal(words, 1, START + timedelta(seconds=2))
    world.memories[uid] = replace(world.memories[uid], refusal=refusal)
    world.settle()
    told = world.condition("small", "Scheduled")
    assert (told["status"], told["reason"]) == ("False", "PodRefused")
    assert told["message"] == f"{words}; tried again with growing pauses"
    assert not world.worker_pods()
    world.pass_time(seconds=2)
    world.settle()
    world.run_pods()
    world.settle()
    assert world.condition("small", "Scheduled")["status"] == "True"


def test_a_pod_on_the_wrong_node_goes() -> None:
    world = served()
    pod = world.worker_pods()[0]
    stray = copy.deepcopy(pod)
    stray["metadata"] |= {"name": "stray", "uid": "stray"}
    stray["spec"]["nodeName"] = "a"
    world.pods["stray"] = stray
    world.settle()
    assert names(world) == [pod["metadata"]["name"]]


@pytest.mark.parametrize(
    "edit",
    [
        {"plimsoll.dev/replica": "zero"},
        {"plimsoll.dev/revision": "of-somebody"},
        {"app.kubernetes.io/managed-by": ""},
        {"app.kubernetes.io/name": "mine", "plimsoll.dev/deployment": "other"},
    ],
    ids=lambda edit: " ".join(key.rpartition("/")[2] for key in edit),
)
def test_a_pod_whose_labels_were_changed_gives_way_to_one_that_services_find(edit: dict[str, str]) -> None:
    world = served()
    [pod] = world.worker_pods()
    pod["metadata"]["labels"] |= edit
    world.settle()
    assert attempts(world) == {"0": "1"}
    assert pod["metadata"]["name"] not in world.pods


def test_cpu_deployments_go_the_same_way() -> None:
    world = World(cpu_node("a"), gpu_node("g"))
    world.provide_claim()
    world.serve("small", CLAIM)
    pod = world.worker_pods()[0]
    assert pod["spec"]["nodeName"] == "a"
    assert world.condition("small", "Ready")["status"] == "True"
