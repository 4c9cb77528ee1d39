"""MemoryProfiles: whom the operator believes, what it keeps, and when it dares to plan closer to the line."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.cluster.test_reports import report
from tests.unit.cluster.world import HUB, NAMESPACE, World, gpu_node

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.cluster.learning import AGREE_BYTES, LIFETIME, learn
from plimsoll.cluster.observed import Observed, ReportAnswer
from plimsoll.cluster.stored_profile import Key, Profile
from plimsoll.planning.profiles import Asker, Profiles, StoredProfile, attributed, stage_profile
from plimsoll_worker.launch import CAPABILITIES, Report

MIB = 1 << 20


@pytest.fixture
def world() -> World:
    world = World(gpu_node("g", 2))
    world.serve("small", HUB, replicas=2)
    return world


def plan_of(world: World) -> PlanStatus:
    return PlanStatus.model_validate(world.status("small")["plans"][0])


def measured(world: World, less: int = 10 * MIB, **changes: Any) -> Report:
    """A worker that took `less` bytes of runtime than foreseen."""
    plan = plan_of(world)
    predicted = plan.memory[0].predicted
    ledger = (
        report(plan)
        .devices[0]
        .bytes.model_copy(
            update=predicted.model_dump() | {"runtime": predicted.runtime - less, "unattributed": 0} | changes
        )
    )
    device = report(plan).devices[0].model_copy(update={"bytes": ledger})
    return report(plan, devices=(device,))


def say(world: World, *reports: Report | None) -> None:
    """What the pods answer, in the order of their names."""
    for pod, told in zip(world.worker_pods("small"), reports, strict=False):
        world.reports[pod["metadata"]["uid"]] = ReportAnswer(told, "" if told else "closed")


def taught(
    world: World, stored: dict[Key, Profile] | None = None, observed: list[Observed] | None = None
) -> dict[Key, Profile]:
    """What is stored after the operator looked."""
    stored = dict(stored or {})
    written, expired = learn(observed or [world.observe("small")], stored, {}, world.now)
    for one in expired:
        del stored[one.namespace, one.name]
    return stored | {(one.namespace, one.name): one for one in written}


def only(stored: dict[Key, Profile]) -> Profile:
    [profile] = stored.values()
    return profile


def test_the_first_report_is_kept_and_frees_nothing_yet(world: World) -> None:
    say(world, measured(world))
    profile = only(taught(world))
    assert profile.namespace == NAMESPACE
    assert profile.spec.fingerprint.model_revision == "c0ffee"
    assert profile.spec.fingerprint.product == "NVIDIA-L4"
    assert profile.status.bytes == measured(world).devices[0].bytes
    assert profile.status.observations == 1
    assert profile.status.margin_bytes == 10 * MIB


def test_what_is_known_asks_for_no_write(world: World) -> None:
    say(world, measured(world))
    stored = taught(world)
    assert learn([world.observe("small")], stored, {}, world.now) == ([], [])
    world.pass_time(hours=23)
    assert learn([world.observe("small")], stored, {}, world.now) == ([], [])


def test_a_second_run_that_agrees_frees_the_margin(world: World) -> None:
    say(world, measured(world), measured(world, less=12 * MIB))
    profile = only(taught(world))
    assert (profile.status.observations, profile.status.margin_bytes) == (2, 0)
    assert profile.status.bytes == measured(world).devices[0].bytes, "the fullest ledger counts"


def test_the_same_run_read_twice_is_one_observation(world: World) -> None:
    say(world, measured(world))
    stored = taught(world)
    world.pass_time(days=2)
    profile = only(taught(world, stored))
    assert profile.status.observations == 1
    assert profile.status.expiry_time != only(stored).status.expiry_time


def test_two_runs_that_disagree_keep_the_margin_and_do_not_swing(world: World) -> None:
    say(world, measured(world), measured(world, less=10 * MIB + 2 * AGREE_BYTES))
    stored = taught(world)
    profile = only(stored)
    assert (profile.status.observations, profile.status.margin_bytes) == (1, 10 * MIB)
    assert learn([world.observe("small")], stored, {}, world.now) == ([], [])


def test_more_than_was_foreseen_counts_at_once(world: World) -> None:
    say(world, measured(world, less=-50 * MIB))
    profile = only(taught(world))
    assert profile.status.margin_bytes == 0
    assert profile.status.bytes is not None
    assert attributed(profile.status.bytes).total == plan_of(world).memory[0].total + 50 * MIB


def end(world: World, reason: str, restarts: int = 1) -> None:
    pod = world.worker_pods("small")[0]
    told = json.dumps({"version": "v1", "reason": reason, "message": "no room"})
    ended = {"reason": "Error", "exitCode": 1, "message": told, "finishedAt": "2026-11-23T04:00:00Z"}
    status = pod["status"]["containerStatuses"][0]
    status |= {"ready": False, "restartCount": restarts, "lastState": {"terminated": ended}}
    pod["status"]["conditions"][0]["status"] = "False"


@pytest.mark.parametrize("reason", ["CUDAOutOfMemory", "MemoryEstimateExceeded"])
def test_every_out_of_memory_widens_the_margin_once(world: World, reason: str) -> None:
    end(world, reason)
    stored = taught(world)
    step = plan_of(world).memory[0].line * 2 // 100
    assert only(stored).status.margin_bytes == step
    assert only(stored).status.bytes is None
    assert taught(world, stored) == stored
    end(world, reason, restarts=2)
    assert only(taught(world, stored)).status.margin_bytes == 2 * step


def test_out_of_memory_takes_back_the_trust_in_two_ledgers(world: World) -> None:
    say(world, measured(world), measured(world))
    stored = taught(world)
    end(world, "CUDAOutOfMemory")
    profile = only(taught(world, stored))
    assert profile.status.observations == 0
    assert profile.status.margin_bytes > 0
    assert profile.status.bytes is not None


def test_other_ends_teach_nothing(world: World) -> None:
    end(world, "ModelUnreadable")
    assert taught(world) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"image": "mine:1"}},
        {"podTemplate": {"env": [{"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "x"}]}},
        {"podTemplate": {"runtimeClassName": "odd"}},
    ],
    ids=["image", "environment", "runtime class"],
)
def test_a_pod_that_is_not_wholly_ours_is_not_believed(change: dict[str, Any]) -> None:
    world = World(gpu_node("g", 2))
    world.serve("small", HUB, replicas=2, **change)
    say(world, measured(world))
    assert taught(world) == {}


def test_a_report_of_another_configuration_is_not_believed(world: World) -> None:
    say(world, measured(world).model_copy(update={"tensor_parallel": 2}))
    assert taught(world) == {}


@pytest.mark.parametrize(
    "lie", [{"weights": 1 << 60}, {"weights": 0}, {"kv_cache": 0}, {"unattributed": -(1 << 60)}]
)
def test_numbers_that_no_device_has_are_not_believed(world: World, lie: dict[str, int]) -> None:
    say(world, measured(world, **lie))
    assert taught(world) == {}


def test_a_profile_that_nobody_observes_is_forgotten(world: World) -> None:
    say(world, measured(world))
    stored = taught(world)
    observed = [replace(world.observe("small"), worker_pods=())]
    world.pass_time(days=int(LIFETIME / timedelta(days=1)))
    assert taught(world, stored, observed) == {}


def lookup(world: World, stored: dict[Key, Profile], *, namespace: str = NAMESPACE, **asker: str) -> Any:
    kept = [
        StoredProfile(namespace, one.spec.fingerprint, stage_profile(one.spec.fingerprint, one.status))
        for one in stored.values()
    ]
    profile = only(stored)
    found = stage_profile(profile.spec.fingerprint, profile.status)
    who = {"namespace": NAMESPACE, "model_revision": "c0ffee", "image": "worker:1", "product": "NVIDIA-L4"}
    return Profiles(kept, CAPABILITIES.engine_version).nearest(
        Asker(**who | asker), found.configuration, found.workload
    )


def test_planning_finds_its_own_namespaces_profile_and_everybodys(world: World) -> None:
    say(world, measured(world))
    stored = taught(world)
    assert lookup(world, stored).keys() == {0}
    assert lookup(world, stored, namespace="").keys() == {0}
    assert lookup(world, stored, namespace="elsewhere") == {}


@pytest.mark.parametrize(
    "asker",
    [
        {"namespace": "elsewhere"},
        {"model_revision": "dead"},
        {"image": "worker:2"},
        {"product": "NVIDIA-H100"},
    ],
    ids=lambda asker: next(iter(asker)),
)
def test_what_one_measured_says_nothing_to_another(world: World, asker: dict[str, str]) -> None:
    say(world, measured(world))
    assert lookup(world, taught(world), **asker) == {}
