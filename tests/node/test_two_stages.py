"""A replica of two pods on a real kubelet: answered through the Service, made anew as a whole when one of
them dies, gone without a trace."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from kubernetes import client
from tests.cluster.operator_process import OperatorProcess
from tests.conftest import SLACK
from tests.node.test_main_path import Scene, images, operators, scene

__all__ = ["images", "operators", "scene"]
pytestmark = [pytest.mark.cluster, pytest.mark.node]

SAMPLE = "smollm2-two-stages.yaml"
START_SECONDS = 300
"""Two workers start at the same time on one machine, and one waits for the other."""


def stages(scene: Scene, name: str) -> dict[str, Any]:
    """Living pods by stage."""
    return {
        pod.metadata.labels["plimsoll.dev/stage"]: pod
        for pod in scene.workers(name)
        if pod.metadata.deletion_timestamp is None
    }


def wait_answering(scene: Scene, name: str, attempt: str) -> dict[str, Any]:
    def ready() -> dict[str, Any] | None:
        found = stages(scene, name)
        same = [pod for pod in found.values() if pod.metadata.labels["plimsoll.dev/attempt"] == attempt]
        answers = scene.condition(name, "Ready")["status"] == "True"
        return found if answers and len(same) == len(found) == 2 else None

    found: dict[str, Any] = scene.wait(ready, f"attempt {attempt} answers", name, START_SECONDS)
    return found


@pytest.mark.parametrize("dying", ["0", "1"])
def test_two_pods_answer_as_one_and_come_back_as_one(
    scene: Scene, operators: Callable[..., OperatorProcess], cluster: Cluster, kube: Any, dying: str
) -> None:
    operators()
    name = scene.apply(SAMPLE)
    pods = wait_answering(scene, name, "0")
    said = scene.complete(name)
    assert "Paris" in said
    scene.wait(lambda: scene.condition(name, "Verified")["status"] == "True", "reports agree", name, 60)

    def measured() -> list[int]:
        return [one["stage"] for one in scene.get(name)["status"]["measured"]]

    # The pods are asked one after the other, and the first report may be told before the second has come.
    scene.wait(lambda: measured() == [0, 1], "both stages are measured", name, 60)
    status = scene.get(name)["status"]
    assert sum(status["plans"][0]["stageLayers"]) == 30

    # The Service leads to the first stage alone, and a drain may take no pod of the only replica but all.
    slices = client.DiscoveryV1Api(kube).list_namespaced_endpoint_slice(
        scene.namespace, label_selector=f"kubernetes.io/service-name={name}"
    )
    reached = {end.target_ref.name for found in slices.items for end in found.endpoints or []}
    assert reached == {pods["0"].metadata.name}

    end_server(cluster, scene.namespace, pods[dying].metadata.name)

    def told() -> bool:
        [replica] = scene.get(name)["status"]["replicaStatuses"]
        return bool(replica.get("lastFailure", {}).get("reason") == "EngineFailed")

    scene.wait(told, "the cause is told, and not only that the other pod lost it", name, 60)
    again = wait_answering(scene, name, "1")
    assert {pod.metadata.uid for pod in again.values()}.isdisjoint(p.metadata.uid for p in pods.values())
    assert scene.complete(name) == said
    [replica] = scene.get(name)["status"]["replicaStatuses"]
    assert (replica["attempt"], replica["restarts"]) == (1, 1)
    assert not scene.census.faults
    scene.delete_and_expect_nothing(name)


END_SERVER = """
import os, signal
for pid in set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid())}:
    if b"plimsoll_worker.server" in open(f"/proc/{pid}/cmdline", "rb").read():
        os.kill(int(pid), signal.SIGKILL)
"""


def end_server(cluster: Cluster, namespace: str, pod: str) -> None:
    """Nothing inside a container can kill its first process; that one ends when its server does."""
    kubectl = [str(binary("kubectl")), f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace}"]
    subprocess.run(
        [*kubectl, "exec", pod, "--", "python", "-c", END_SERVER],
        check=True,
        capture_output=True,
        timeout=60 * SLACK,
    )
