"""Replicas of several pods: one of them is lost, and the name by which they find each other is taken."""

from __future__ import annotations

import pytest
from kubernetes import client
from tests.cluster.faults.conftest import Scene
from tests.cluster.faults.ground import deployment, ended

from plimsoll_worker.launch import ExitCode, ExitReason

pytestmark = pytest.mark.cluster

TWO_STAGES = {"parallelism": {"pipeline": 2}}


def of_replica(scene: Scene, replica: int) -> dict[str, str]:
    """UIDs of its pods, by name."""
    return {name: uid for name, uid in scene.models.pod_uids().items() if f"-r{replica}-s" in name}


def test_a_stage_that_fails_starts_its_whole_replica_anew_and_only_it(scene: Scene) -> None:
    scene.serve(replicas=2, **TWO_STAGES)
    lost, kept = of_replica(scene, 0), of_replica(scene, 1)
    assert len(lost) == len(kept) == 2
    words = ExitReason(reason=ExitCode.ENGINE_FAILED, message="no kernel")
    fate = {"metadata": {"annotations": ended(1, words.to_json())}}
    scene.models.core.patch_namespaced_pod(max(lost), scene.models.name, fate)
    told = scene.told("small", "Degraded", "True", "EngineFailed")["message"]
    assert f"pod {max(lost)}: no kernel; its replica is made anew at" in told
    scene.wait(
        lambda: len(of_replica(scene, 0)) == 2 and not lost.items() & of_replica(scene, 0).items(),
        "both stages are made anew",
        lambda: scene.models.get("small"),
    )
    scene.ready()
    assert of_replica(scene, 1) == kept
    restarts = {one["replica"]: one["restarts"] for one in scene.models.status("small")["replicaStatuses"]}
    assert restarts == {0: 1, 1: 0}


def test_the_name_of_the_workers_service_is_taken_and_told_until_it_is_free(scene: Scene) -> None:
    core, namespace = scene.models.core, scene.models.name
    web = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    body = {"metadata": {"name": "small-workers"}, "spec": web}
    theirs = core.create_namespaced_service(namespace, body)
    scene.models.apply("small", deployment(**TWO_STAGES))
    told = scene.told("small", "Degraded", "True", "NameTaken")["message"]
    assert "Service small-workers exists and does not belong" in told
    scene.told("small", "Ready", "False", "NameTaken")
    scene.quiet()
    assert core.read_namespaced_service("small-workers", namespace).spec == theirs.spec
    core.delete_namespaced_service("small-workers", namespace)
    scene.ready()
    ours: client.V1Service = core.read_namespaced_service("small-workers", namespace)
    assert ours.spec.cluster_ip == "None"
    scene.told("small", "Degraded", "False")
