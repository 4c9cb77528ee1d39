"""The stages of a start, in time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.cluster.test_reports import report as report_of
from tests.unit.cluster.world import START, World, facts, gpu_node

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.cluster.observed import ReportAnswer
from plimsoll.cluster.own_pods import stamp
from plimsoll_worker.launch import StartupStage, StartupTime


def started(*, report: bool) -> World:
    """Bound after 1 s, its container runs after 4 s, ready after 10 s."""
    world = World(gpu_node("g1", 1))
    world.deploy("small")
    world.settle()
    world.end_inspection("small", facts().pack())
    world.settle()
    world.run_pods()
    [pod] = world.worker_pods()
    bound, runs, ready = (stamp(START + timedelta(seconds=seconds)) for seconds in (1, 4, 10))
    pod["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": bound},
        {"type": "Ready", "status": "True", "lastTransitionTime": ready},
    ]
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": runs}}
    if report:
        times = (
            StartupTime(stage=StartupStage.WEIGHTS_LOADED, milliseconds=3500),
            StartupTime(stage=StartupStage.WARMED_UP, milliseconds=5200),
        )
        plan = PlanStatus.model_validate(world.status("small")["plans"][0])
        answer = report_of(plan).model_copy(update={"startup": times})
        world.reports[pod["metadata"]["uid"]] = ReportAnswer(answer)
    world.settle()
    return world


def stages(world: World) -> dict[str, Any]:
    return {entry["stage"]: entry["milliseconds"] for entry in world.status("small")["startup"]}


def test_each_stage_is_timed_from_the_end_of_the_one_before() -> None:
    assert stages(started(report=True)) == {
        "Scheduled": 1000,
        "ImagePulled": 3000,
        "WeightsLoaded": 3500,
        "WarmedUp": 1700,
        "Ready": 800,
    }


def test_without_a_report_kubernetes_tells_what_it_knows() -> None:
    assert stages(started(report=False)) == {"Scheduled": 1000, "ImagePulled": 3000, "Ready": 6000}


def test_a_restarted_operator_that_has_read_nobody_yet_writes_nothing() -> None:
    world = started(report=True)
    reports = dict(world.reports)
    world.restart()
    for known in ({}, reports):
        world.reports = known
        assert world.step() == 0


def test_a_restart_in_place_changes_nothing_and_the_times_outlive_the_pod() -> None:
    world = started(report=False)
    before = stages(world)
    [pod] = world.worker_pods()
    pod["status"]["containerStatuses"][0] |= {
        "restartCount": 1,
        "state": {"running": {"startedAt": stamp(START + timedelta(hours=1))}},
    }
    world.settle()
    assert stages(world) == before
    world.pods.clear()
    world.settle()
    assert stages(world) == before


def late(world: World, *, ran: int, exit_code: int) -> None:
    """The kubelet has ended the container, and started another one, after so many seconds."""
    [pod] = world.worker_pods()
    began = world.stamp()
    world.pass_time(seconds=ran)
    times = {"startedAt": began, "finishedAt": world.stamp()}
    ended = {"reason": "Error", "exitCode": exit_code} | times
    [status] = pod["status"]["containerStatuses"]
    status |= {"restartCount": 1, "lastState": {"terminated": ended}}
    status["state"] = {"running": {"startedAt": world.stamp()}}


def loading() -> World:
    """A worker runs and does not answer."""
    world = World(gpu_node("g"))
    world.serve("small")
    [pod] = world.worker_pods()
    pod["status"]["conditions"][0] |= {"status": "False", "lastTransitionTime": world.stamp()}
    pod["status"]["containerStatuses"][0]["ready"] = False
    world.settle()
    return world


def test_a_start_is_told_with_the_time_at_which_it_is_ended() -> None:
    ready = loading().condition("small", "Ready")
    assert ready["reason"] == "Starting"
    assert "the kubelet restarts it at 2026-11-23T04:05:05Z unless it answers by then" in ready["message"]


@pytest.mark.parametrize("exit_code", [0, 137])
def test_a_start_that_the_kubelet_ended_is_told_as_one_however_the_process_ended(exit_code: int) -> None:
    world = loading()
    late(world, ran=310, exit_code=exit_code)
    world.settle()
    ready = world.condition("small", "Ready")
    assert ready["reason"] == "StartupDeadlineExceeded"
    assert "did not answer within 305 s" in ready["message"]


def test_who_ended_sooner_or_had_answered_was_not_late() -> None:
    world = loading()
    late(world, ran=100, exit_code=137)
    world.settle()
    assert world.condition("small", "Ready")["reason"] == "Error"
    world = loading()
    late(world, ran=310, exit_code=137)
    [pod] = world.worker_pods()
    pod["status"]["conditions"][0]["lastTransitionTime"] = world.stamp()
    world.settle()
    assert world.condition("small", "Ready")["reason"] == "Error"
