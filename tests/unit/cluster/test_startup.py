"""The stages of a start, in time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

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
