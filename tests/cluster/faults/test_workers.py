"""Workers that run out of memory while they load, that run something else than they were told, and reports
that come from a pod which its user controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes import client
from tests.cluster.faults import workers
from tests.cluster.faults.conftest import Scene, first_of
from tests.cluster.faults.ground import deployment, ended
from tests.cluster.faults.workers import Answer, changed, measuring

from plimsoll.cluster.own_pods import stamp
from plimsoll_worker.launch import Device, ExitCode, ExitReason, Launch, Precision, WeightsScheme

pytestmark = pytest.mark.cluster

LIES: dict[str, tuple[Answer, str]] = {
    "another device": (changed(device=Device.CPU), "device: planned GPU, runs CPU"),
    "another precision": (changed(weights=WeightsScheme.plain(Precision.FP16)), "weights: planned BF16"),
    "another split": (changed(tensor_parallel=2), "tensor parallel: planned 1, runs 2"),
    "a report of somebody else": (changed(revision="of-somebody-else"), "revision: planned small-"),
}
MISSING = "plimsoll.dev/worker:missing"
USELESS: dict[str, tuple[Answer, str]] = {
    "slow": (workers.slow, "took longer than"),
    "huge": (workers.huge, "larger than"),
    "never": (workers.never, "took longer than"),
    "malformed": (workers.malformed, "is no report"),
    "negative bytes": (measuring(weights=-1), "is no report"),
}


@pytest.mark.parametrize(("answer", "told"), first_of(LIES))
def test_a_worker_that_runs_something_else_is_told_and_teaches_nothing(
    answer: Answer, told: str, scene: Scene
) -> None:
    scene.ground.workers.answers[scene.models.name, "small"] = answer
    scene.models.apply("small", deployment())
    found = scene.told("small", "Verified", "False", "EffectiveConfigMismatch")
    assert told in found["message"]
    scene.told("small", "Ready", "False", "EffectiveConfigMismatch")
    scene.told("small", "Degraded", "True", "EffectiveConfigMismatch")
    [pod] = scene.models.pods()
    scene.quiet()
    assert scene.profiles() == []
    assert scene.models.pod_uids() == {pod.metadata.name: pod.metadata.uid}


@pytest.mark.parametrize(("answer", "told"), first_of(USELESS))
def test_a_report_that_cannot_be_read_takes_nobody_down_and_teaches_nothing(
    answer: Answer, told: str, scene: Scene
) -> None:
    scene.ground.workers.answers[scene.models.name, "small"] = answer
    scene.serve()
    scene.told("small", "Verified", "Unknown", "ReportUnreachable")
    # A worker of a busy machine may say less than it would before the time is over; it is asked again.
    scene.wait(
        lambda: told in scene.models.condition("small", "Verified")["message"],
        f"it is told that the report {told}",
        lambda: scene.models.get("small"),
    )
    found = scene.told("small", "Verified", "Unknown", "ReportUnreachable")
    assert "Serving is not affected" in found["message"]
    scene.ready()
    assert scene.profiles() == []


def ended_late(pod: client.V1Pod) -> dict[str, Any]:
    """The status of a pod whose container the kubelet has just restarted for want of an answer."""
    [container] = pod.spec.containers
    probe, now = container.startup_probe, datetime.now(UTC)
    began = now - timedelta(seconds=probe.period_seconds * probe.failure_threshold + 1)
    times = {"startedAt": stamp(began), "finishedAt": stamp(now)}
    status = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": False,
        "restartCount": 1,
        "state": {"running": {"startedAt": stamp(now)}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "Error"} | times},
    }
    created = {"type": "Ready", "status": "False", "lastTransitionTime": stamp(began)}
    return {"status": {"conditions": [created], "containerStatuses": [status]}}


def without_image(pod: client.V1Pod) -> dict[str, Any]:
    """The status of a pod whose image the kubelet does not get."""
    [container] = pod.spec.containers
    waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{container.image}"'}
    status = {"name": container.name, "image": container.image, "imageID": "", "ready": False}
    status |= {"restartCount": 0, "state": {"waiting": waiting}}
    return {"status": {"containerStatuses": [status]}}


def test_a_worker_that_hangs_at_load_is_told_with_its_deadline_and_given_up(scene: Scene) -> None:
    scene.ground.watch.fates[scene.models.name, "small"] = lambda _pod: {"plimsoll.dev/fake-unready": ""}
    scene.models.apply("small", deployment(rollout={"maxRestarts": 1, "drainSeconds": 0}))
    scene.wait(
        lambda: "the kubelet restarts it at" in scene.models.condition("small", "Ready").get("message", ""),
        "the deadline is told",
        lambda: scene.models.get("small"),
    )
    assert scene.models.condition("small", "Ready")["reason"] == "Starting"
    [pod] = scene.models.pods()
    scene.models.core.patch_namespaced_pod_status(pod.metadata.name, scene.models.name, ended_late(pod))
    told = scene.told("small", "Ready", "False", "StartupDeadlineExceeded")["message"]
    assert "it did not answer within" in told
    scene.told("small", "Degraded", "True", "StartupDeadlineExceeded")
    again = ended_late(pod)
    again["status"]["containerStatuses"][0]["restartCount"] = 2
    scene.models.core.patch_namespaced_pod_status(pod.metadata.name, scene.models.name, again)
    scene.told("small", "Progressing", "False", "RestartBudgetExhausted")
    scene.wait(lambda: not scene.models.pods(), "its GPU is free", scene.models.pod_uids)
    assert scene.models.condition("small", "Ready")["reason"] == "StartupDeadlineExceeded"


def test_an_image_that_is_missing_is_told_until_another_one_is_written(scene: Scene) -> None:
    scene.ground.watch.fates[scene.models.name, "small"] = lambda pod: (
        {"plimsoll.dev/fake-unready": ""} if pod["spec"]["containers"][0]["image"] == MISSING else {}
    )
    scene.models.apply("small", deployment(engine={"image": MISSING}))
    [pod] = scene.wait(
        lambda: [pod for pod in scene.models.pods() if pod.status.container_statuses], "a pod waits"
    )
    scene.models.core.patch_namespaced_pod_status(pod.metadata.name, scene.models.name, without_image(pod))
    told = scene.told("small", "Ready", "False", "ImagePullBackOff")["message"]
    assert f'Back-off pulling image "{MISSING}"' in told
    scene.told("small", "Degraded", "True", "ImagePullBackOff")
    scene.models.patch("small", {"engine": {"image": ""}})
    scene.ready()
    scene.told("small", "Degraded", "False")


def test_out_of_memory_at_load_ends_in_a_configuration_that_loads(scene: Scene) -> None:
    tried: list[tuple[str, str, int]] = []
    """Image, pod and token budget; a request that is sent again is no second try."""
    frugal = "plimsoll.dev/worker:frugal"

    def planned() -> list[int]:
        return [tokens for image, _, tokens in tried if image != frugal]

    def fate(pod: Mapping[str, Any]) -> Mapping[str, str]:
        """It takes less than half of the token budget that is planned first; another engine takes less."""
        [container] = pod["spec"]["containers"]
        launch = Launch.from_env({one["name"]: one.get("value") for one in container["env"]})
        this = container["image"], pod["metadata"]["name"], launch.max_batched_tokens
        if tried[-1:] != [this]:
            tried.append(this)
        if container["image"] == frugal:
            return {}
        if launch.max_batched_tokens * 2 > planned()[0]:
            reason = ExitReason(reason=ExitCode.CUDA_OUT_OF_MEMORY, message="12 MiB short while loading")
            return ended(1, reason.to_json())
        return {}

    scene.ground.watch.fates[scene.models.name, "small"] = fate
    scene.models.apply("small", deployment(workload={"maxContextTokens": 4096}))
    scene.ready()
    status = scene.models.status("small")
    assert status["plans"][0]["maxBatchedTokens"] * 2 <= planned()[0]
    assert {one["reason"] for one in status["exclusions"]} == {"CUDAOutOfMemory"}
    assert "12 MiB short while loading" in scene.models.condition("small", "Planned")["message"]
    assert len(planned()) == len(set(planned())), "no configuration was tried twice"
    assert "CUDAOutOfMemory" in json.dumps(status)

    def budget() -> int:
        found: int = scene.models.status("small")["plans"][0]["maxBatchedTokens"]
        return found

    scene.models.patch("small", {"engine": {"image": frugal}})
    scene.ready()
    assert budget() == planned()[0], "what was left out, was left out with another engine"
    scene.models.patch("small", {"engine": {"image": ""}})
    scene.ready()
    assert budget() * 2 <= planned()[0]
    assert len(planned()) == len(set(planned())) + 1, (
        "back at the first engine, what failed there is not tried"
    )
