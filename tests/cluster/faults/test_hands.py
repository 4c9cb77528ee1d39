"""What people do by hand: to status, to pods, to what they are labelled with, to namespaces and kinds."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client
from tests.cluster.faults.conftest import THOROUGH, Scene, first_of
from tests.cluster.faults.ground import deployment
from tests.cluster.lifecycle.conftest import serves_our_kinds

from plimsoll.api.v1alpha1 import GROUP, PLURAL, VERSION

pytestmark = pytest.mark.cluster


LABELS: dict[str, dict[str, str | None]] = {
    "none left": {"plimsoll.dev/deployment": None, "app.kubernetes.io/managed-by": None},
    "another replica": {"plimsoll.dev/replica": "7"},
    "no number": {"plimsoll.dev/replica": "x"},
    "another revision": {"plimsoll.dev/revision": "of-somebody"},
    "another attempt": {"plimsoll.dev/attempt": "9"},
}


def put_status(scene: Scene, name: str, status: dict[str, Any] | None) -> None:
    custom = client.CustomObjectsApi(scene.ground.kube)
    custom.patch_namespaced_custom_object_status(
        GROUP,
        VERSION,
        scene.models.name,
        PLURAL,
        name,
        {"status": status},
        _content_type="application/merge-patch+json",
    )


@pytest.mark.parametrize("away", first_of({"while it is away": True, "while it looks on": False}))
def test_a_wiped_status_is_rebuilt_from_revisions_and_pods(away: bool, scene: Scene) -> None:
    scene.serve(replicas=2)
    before, pods = scene.models.status("small"), scene.models.pod_uids()
    if away:
        scene.ground.kill_operator()
    put_status(scene, "small", None)
    assert scene.operator.running
    scene.ready()
    after = scene.models.status("small")
    assert scene.models.pod_uids() == pods
    assert [plan["placements"] for plan in after["plans"]] == [plan["placements"] for plan in before["plans"]]
    assert after["currentRevision"] == before["currentRevision"]


@THOROUGH
def test_a_forged_status_moves_no_pod_to_a_gpu_of_others(scene: Scene) -> None:
    scene.serve()
    before = scene.models.status("small")
    taken = scene.ground.bystander_nodes()
    forged = [
        plan | {"placements": [place | {"node": taken[0]} for place in plan["placements"]]}
        for plan in before["plans"]
    ]
    put_status(scene, "small", {"plans": forged})
    scene.ready()
    scene.wait(
        lambda: scene.models.status("small")["plans"][0]["placements"][0]["node"] not in taken,
        "the plan has a place of its own",
        lambda: scene.models.get("small"),
    )
    scene.wait(lambda: len(scene.models.pods()) == 1, "one pod is left", scene.models.pod_uids)
    scene.ready()


def test_pods_deleted_by_hand_come_back_and_cost_no_restart(scene: Scene) -> None:
    scene.serve(replicas=3)
    before = set(scene.models.pod_uids().values())
    for pod in scene.models.pods():
        scene.models.core.delete_namespaced_pod(pod.metadata.name, scene.models.name, grace_period_seconds=0)
    scene.wait(
        lambda: len(fresh := scene.models.pod_uids().values()) == 3 and not before & set(fresh),
        "three new pods",
        scene.models.pod_uids,
    )
    scene.ready()
    assert all(one["restarts"] == 0 for one in scene.models.status("small")["replicaStatuses"])


@pytest.mark.parametrize("labels", first_of(LABELS))
def test_labels_edited_by_hand_end_in_one_pod_for_each_replica(
    labels: dict[str, str | None], scene: Scene
) -> None:
    scene.serve()
    [pod] = scene.models.pods()
    scene.models.core.patch_namespaced_pod(
        pod.metadata.name, scene.models.name, {"metadata": {"labels": labels}}
    )

    def replicas() -> list[str]:
        return [
            found.metadata.labels["plimsoll.dev/replica"]
            for found in scene.models.pods(name="small")
            if found.metadata.deletion_timestamp is None
        ]

    scene.wait(lambda: replicas() == ["0"], "one pod, of replica 0", scene.models.pods)
    scene.quiet()
    scene.ready()
    assert replicas() == ["0"], "and it stays so"


@THOROUGH
def test_annotations_of_pods_edited_by_hand_disturb_nothing(scene: Scene) -> None:
    scene.serve()
    pods = scene.models.pod_uids()
    [pod] = scene.models.pods()
    odd = {key: "{not json" for key in pod.metadata.annotations if key.startswith("plimsoll.dev/")}
    assert odd
    scene.models.core.patch_namespaced_pod(
        pod.metadata.name, scene.models.name, {"metadata": {"annotations": odd}}
    )
    scene.quiet()
    scene.ready()
    assert scene.models.pod_uids() == pods


def test_services_and_budgets_of_others_are_left_as_they_are_and_told(scene: Scene) -> None:
    policy = client.PolicyV1Api(scene.ground.kube)
    core, namespace = scene.models.core, scene.models.name
    web = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    service = core.create_namespaced_service(namespace, {"metadata": {"name": "small"}, "spec": web})
    kept = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    budget = policy.create_namespaced_pod_disruption_budget(
        namespace, {"metadata": {"name": "small"}, "spec": kept}
    )
    scene.models.apply("small", deployment(replicas=2))
    told = scene.told("small", "Ready", "False", "NameTaken")["message"]
    assert "Service small and PodDisruptionBudget small exist and do not belong" in told
    scene.told("small", "Available", "True")
    scene.quiet()
    found = core.read_namespaced_service("small", namespace)
    assert (found.spec, found.metadata) == (service.spec, service.metadata)
    assert policy.read_namespaced_pod_disruption_budget("small", namespace).spec == budget.spec
    core.delete_namespaced_service("small", namespace)
    scene.ready()
    assert (
        core.read_namespaced_service("small", namespace).spec.selector["plimsoll.dev/deployment"] == "small"
    )
    assert "PodDisruptionBudget small" in scene.told("small", "Degraded", "True", "NameTaken")["message"]
    policy.delete_namespaced_pod_disruption_budget("small", namespace)
    scene.told("small", "Degraded", "False")


def test_a_namespace_deleted_during_a_roll_out_goes_wholly(scene: Scene) -> None:
    other = f"{scene.models.name[:50]}-gone"
    scene.models.core.create_namespace({"metadata": {"name": other}})
    doomed = type(scene.models)(scene.ground.kube, other, scene.ground.wait_for)
    scene.wait(lambda: doomed.core.list_namespaced_service_account(other).items, "the namespace takes pods")
    doomed.apply("small", deployment(replicas=3))
    Scene(scene.ground, doomed).ready()
    scene.ground.watch.fates[other, "small"] = lambda _pod: {"plimsoll.dev/fake-unready": ""}
    doomed.patch("small", {"workload": {"maxConcurrentSequences": 2}})
    scene.wait(lambda: len(doomed.status("small")["plans"]) == 2, "a roll-out is on its way")
    doomed.core.delete_namespace(other)
    scene.wait(
        lambda: other not in {one.metadata.name for one in doomed.core.list_namespace().items},
        "the namespace is gone",
        lambda: doomed.core.read_namespace(other),
    )
    scene.serve()


def test_a_crd_deleted_and_made_anew_leaves_nothing_and_serves_again(scene: Scene) -> None:
    scene.serve()
    extensions = client.ApiextensionsV1Api(scene.ground.kube)
    name = f"{PLURAL}.{GROUP}"
    body = extensions.read_custom_resource_definition(name)
    fresh = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": scene.ground.kube.sanitize_for_serialization(body.spec),
    }
    extensions.delete_custom_resource_definition(name)
    scene.wait(
        lambda: name not in {one.metadata.name for one in extensions.list_custom_resource_definition().items},
        "the kind is gone",
    )
    scene.wait(lambda: not scene.models.pods(), "its pods are gone", scene.models.pod_uids)
    extensions.create_custom_resource_definition(fresh)

    def established() -> bool:
        told = extensions.read_custom_resource_definition(name).status.conditions or ()
        return any(one.type == "Established" and one.status == "True" for one in told)

    scene.wait(established, "the kind is established again")
    scene.wait(lambda: serves_our_kinds(scene.ground.kube), "the kind is served again")
    scene.ground.settle_bystanders()
    scene.serve("again")
