"""Replicas of several pods: they start together, and they are made anew together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.cluster.world import World, facts, gpu_node

from plimsoll.cluster.observed import OpenGate
from plimsoll_worker.launch import CAPABILITIES, ExitCode, ExitReason

TWO_STAGES: dict[str, Any] = {"parallelism": {"pipeline": 2}}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two nodes, and an engine that runs stages on different ones."""
    wide = CAPABILITIES.model_copy(update={"max_pipeline_parallel": 4, "multi_node": True})
    monkeypatch.setattr("plimsoll.cluster.case.CAPABILITIES", wide)
    return World(gpu_node("g1", 1), gpu_node("g2", 1))


def planned(world: World, **spec: Any) -> None:
    world.deploy("small", **TWO_STAGES, **spec)
    world.settle()
    world.end_inspection("small", facts().pack())


def names(world: World) -> list[str]:
    return sorted(pod["metadata"]["name"].split("-", 2)[2] for pod in world.worker_pods())


def test_the_pods_of_a_replica_are_seen_by_the_scheduler_when_all_of_them_exist(world: World) -> None:
    planned(world)
    world.step()
    assert names(world) == ["r0-s0-a0", "r0-s1-a0"]
    assert all(
        pod["spec"]["schedulingGates"] == [{"name": "plimsoll.dev/plan"}] for pod in world.worker_pods()
    )
    assert all(pod["spec"]["restartPolicy"] == "Never" for pod in world.worker_pods())
    opened = [action for action in world.outcome("small").actions if isinstance(action, OpenGate)]
    assert len(opened) == 2
    world.settle()
    world.run_pods()
    world.settle()
    status = world.status("small")
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert world.condition("small", "Ready")["status"] == "True"


def test_workers_that_look_for_each_other_have_a_headless_service_and_others_have_none(world: World) -> None:
    planned(world)
    world.serve("alone")
    world.settle()
    assert set(world.services) == {"small", "small-workers", "alone"}
    world.services["small-workers"]["spec"]["publishNotReadyAddresses"] = False
    world.settle()
    assert world.services["small-workers"]["spec"]["publishNotReadyAddresses"] is True


@pytest.mark.parametrize("stop_after", range(7))
def test_killed_while_pods_are_made_no_gate_opens_before_all_exist(world: World, stop_after: int) -> None:
    planned(world)
    for _ in range(12):
        world.step(stop_after=stop_after)
        world.restart()
        open_ones = [pod for pod in world.worker_pods() if not pod["spec"].get("schedulingGates")]
        assert not open_ones or len(world.worker_pods()) == 2
        world.step()
    world.run_pods()
    world.settle()
    assert names(world) == ["r0-s0-a0", "r0-s1-a0"]


def test_one_pod_replicas_have_no_gate(world: World) -> None:
    world.serve("small")
    assert all("schedulingGates" not in pod["spec"] for pod in world.worker_pods())


def _fails(world: World, pod: dict[str, Any]) -> None:
    pod["status"] = {"phase": "Failed", "message": "rendezvous timed out"}
    world.pass_time(seconds=10)


def _evicted(world: World, pod: dict[str, Any]) -> None:
    pod["status"] = {"phase": "Failed", "reason": "Evicted"}


def _deleted(world: World, pod: dict[str, Any]) -> None:
    del world.pods[pod["metadata"]["name"]]


def _deleted_while_away(world: World, pod: dict[str, Any]) -> None:
    del world.pods[pod["metadata"]["name"]]
    world.restart()


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("lost", [_fails, _evicted, _deleted, _deleted_while_away])
def test_a_stage_that_is_lost_takes_its_replica_with_it_and_only_it(
    world: World, stage: int, lost: Callable[[World, dict[str, Any]], None]
) -> None:
    world.nodes |= {name: gpu_node(name, 1) for name in ("g3", "g4")}
    planned(world, replicas=2)
    world.settle()
    world.run_pods()
    world.settle()
    others = {name for name in world.pods if "-r1-" in name}
    lost(world, next(pod for name, pod in world.pods.items() if f"-r0-s{stage}-" in name))
    world.settle()
    assert {name for name in world.pods if "-r1-" in name} == others
    assert [name for name in names(world) if name.startswith("r0")] == ["r0-s0-a1", "r0-s1-a1"]
    world.run_pods()
    world.settle()
    [first, second] = world.status("small")["replicaStatuses"]
    assert (first["attempt"], second["attempt"]) == (1, 0)
    assert first["restarts"] == (1 if lost is _fails else 0)
    assert world.condition("small", "Ready")["status"] == "True"


def _ends(world: World, stage: int, code: ExitCode, message: str) -> None:
    pod = next(pod for name, pod in world.pods.items() if f"-s{stage}-" in name)
    told = ExitReason(reason=code, message=message).to_json()
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": told, "finishedAt": world.stamp()}}
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"ready": False, "state": ended}]}


@pytest.mark.parametrize("cause", [0, 1])
def test_what_is_told_of_a_replica_is_the_cause_and_not_that_the_others_lost_it(
    world: World, cause: int
) -> None:
    planned(world)
    world.settle()
    world.run_pods()
    world.settle()
    _ends(world, 1 - cause, ExitCode.PEER_LOST, f"stage {cause} is gone")
    world.settle()
    assert world.status("small")["replicaStatuses"][0]["attempt"] == 0, "the cause may still be told"
    _ends(world, cause, ExitCode.ENGINE_FAILED, "the card fell off the bus")
    world.settle()
    [told] = world.status("small")["replicaStatuses"]
    assert told["lastFailure"]["reason"] == "EngineFailed"
    assert world.condition("small", "Degraded")["reason"] == "EngineFailed"
    world.pass_time(seconds=10)
    world.settle()
    [told] = world.status("small")["replicaStatuses"]
    assert (told["attempt"], told["restarts"]) == (1, 1)


def test_a_stage_that_was_evicted_costs_no_restart_however_the_others_end(world: World) -> None:
    planned(world)
    world.settle()
    world.run_pods()
    world.settle()
    _ends(world, 0, ExitCode.PEER_LOST, "stage 1 is gone")
    _evicted(world, next(pod for name, pod in world.pods.items() if "-s1-" in name))
    world.settle()
    [told] = world.status("small")["replicaStatuses"]
    assert (told["attempt"], told["restarts"]) == (1, 0)


def test_stages_that_only_lost_each_other_are_made_anew_after_a_pause(world: World) -> None:
    planned(world)
    world.settle()
    world.run_pods()
    world.settle()
    for stage in (0, 1):
        _ends(world, stage, ExitCode.PEER_LOST, "nothing came for 8 s")
    world.settle()
    assert world.status("small")["replicaStatuses"][0]["attempt"] == 0
    world.pass_time(seconds=10)
    world.settle()
    [told] = world.status("small")["replicaStatuses"]
    assert (told["attempt"], told["restarts"]) == (1, 1)


def test_a_terminating_stage_lets_its_siblings_go_and_its_successor_wait(world: World) -> None:
    planned(world)
    world.settle()
    world.run_pods()
    world.settle()
    leaving = next(pod for name, pod in world.pods.items() if "-s0-" in name)
    world.terminate(leaving)
    world.settle()
    # The other stage's place is free at once, this one's when its pod is gone; neither starts alone.
    assert names(world) == ["r0-s0-a0", "r0-s1-a1"]
    assert world.pods[next(name for name in world.pods if "s1-a1" in name)]["spec"]["schedulingGates"]
    del world.pods[leaving["metadata"]["name"]]
    world.settle()
    assert names(world) == ["r0-s0-a1", "r0-s1-a1"]
    assert not any("schedulingGates" in pod["spec"] for pod in world.worker_pods())


def test_stages_that_keep_failing_are_given_up_together(world: World) -> None:
    planned(world, rollout={"maxRestarts": 0})
    world.settle()
    world.run_pods()
    world.settle()
    _fails(world, world.worker_pods()[1])
    world.settle()
    assert not world.worker_pods()
    assert world.condition("small", "Progressing")["reason"] == "RestartBudgetExhausted"
