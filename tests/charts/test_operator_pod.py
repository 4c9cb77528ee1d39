"""`helm install` runs the operator as a real pod, which works with the rights that the chart gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dev.cluster.description import Cluster
from dev.image import ensure_images
from kubernetes import client
from tests.charts.conftest import CHARTS, Run
from tests.conftest import SLACK

from plimsoll.api.v1alpha1 import API_VERSION, GROUP, KIND, PLURAL, VERSION

pytestmark = [pytest.mark.cluster, pytest.mark.node]

INSTALL = ("upgrade", "--install", "--wait", f"--timeout={180 * SLACK}s")
TAGS = ("--set=image.operator.tag=dev", "--set=image.worker.tag=dev")


@pytest.fixture
def operator(cluster: Cluster, in_cluster: Run, namespace: str) -> Iterator[str]:
    """Both charts, installed as a README says it. The name of the Deployment."""
    ensure_images(cluster, ["operator"])
    crds = ("plimsoll-crds", str(CHARTS / "plimsoll-crds"), "--take-ownership", "--force-conflicts")
    in_cluster("helm", *INSTALL, *crds)
    try:
        in_cluster("helm", *INSTALL, "plimsoll", str(CHARTS / "plimsoll"), "-n", namespace, *TAGS)
        yield "plimsoll"
    finally:
        print(in_cluster("kubectl", "logs", "-n", namespace, "deployment/plimsoll", "--tail=100").stdout)
        in_cluster("helm", "uninstall", "plimsoll", "-n", namespace, "--wait")


def test_the_operator_works_as_installed(
    operator: str, in_cluster: Run, kube: client.ApiClient, namespace: str, wait_for: Callable[..., Any]
) -> None:
    resources, core = client.CustomObjectsApi(kube), client.CoreV1Api(kube)
    [pod] = operator_pods(core, namespace)
    assert pod.spec.automount_service_account_token
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "lost"},
        "spec": {
            "model": {"persistentVolumeClaim": {"claimName": "nowhere"}},
            "placement": {"device": "CPU"},
        },
    }
    resources.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)

    def resource() -> Any:
        return resources.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, "lost")

    def judged() -> Any:
        told = {found["type"]: found for found in resource().get("status", {}).get("conditions", [])}
        return told if told.get("ModelResolved", {}).get("status") == "False" else None

    told = wait_for(judged, 60, "the operator says that the claim is missing", resource)
    assert told["Ready"]["status"] == "False"
    assert "nowhere" in told["ModelResolved"]["message"]
    events = ("get", "events", "-n", namespace, "--field-selector", "involvedObject.name=lost")
    wait_for(lambda: in_cluster("kubectl", *events).stdout, 30, "an event tells it too")

    resources.delete_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, "lost")
    logs = in_cluster("kubectl", "logs", "-n", namespace, f"deployment/{operator}").stdout
    assert "forbidden" not in logs.lower()
    assert "Traceback" not in logs
    [same] = operator_pods(core, namespace)
    assert (same.metadata.uid, same.status.container_statuses[0].restart_count) == (pod.metadata.uid, 0)


def test_a_changed_value_replaces_the_pod_and_never_runs_two(
    operator: str, in_cluster: Run, kube: client.ApiClient, namespace: str, wait_for: Callable[..., Any]
) -> None:
    core = client.CoreV1Api(kube)
    [before] = operator_pods(core, namespace)
    changed = (*TAGS, "--set=logLevel=DEBUG")
    in_cluster("helm", *INSTALL, "plimsoll", str(CHARTS / "plimsoll"), "-n", namespace, *changed)

    def uids() -> list[str]:
        return [pod.metadata.uid for pod in operator_pods(core, namespace)]

    # Helm waits for the new pod, and not until the old one goes.
    wait_for(lambda: len(uids()) == 1, 60, "one pod is left", uids)
    assert uids() != [before.metadata.uid]


def operator_pods(core: client.CoreV1Api, namespace: str) -> list[Any]:
    selector = "app.kubernetes.io/component=operator"
    pods: list[Any] = core.list_namespaced_pod(namespace, label_selector=selector).items
    return [pod for pod in pods if pod.metadata.deletion_timestamp is None]
