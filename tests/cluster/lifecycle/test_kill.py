"""SIGKILL between any two writes of a plan's life: the end is the same, nothing is made or promised twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dev.cluster.description import Cluster
from tests.cluster.api_proxy import ApiProxy, Request
from tests.cluster.conftest import L4
from tests.cluster.lifecycle.conftest import Namespace, small
from tests.cluster.lifecycle.operator_process import Operator
from tests.cluster.lifecycle.promises import PromiseWatch
from tests.cluster.thorough import first_of

pytestmark = [pytest.mark.cluster, pytest.mark.node]


def _writes_plan(request: Request) -> bool:
    if request.method != "PUT" or not request.path.endswith("/status"):
        return False
    return bool(json.loads(request.body)["status"].get("plans"))


def _creates_worker(request: Request) -> bool:
    return request.method == "POST" and request.path.endswith("/pods") and b"plimsoll-worker" in request.body


MOMENTS: dict[str, Callable[[Request], bool]] = {
    "between plan and pods": _creates_worker,
    "before the inspect pod": lambda request: b"plimsoll-inspect" in request.body,
    "before the revision": lambda request: (
        request.path.endswith("/controllerrevisions") and request.method == "POST"
    ),
    "before the plan is written": _writes_plan,
    "between pods and Service": lambda request: request.method == "PATCH" and "/services/" in request.path,
    "before the inspect pod is deleted": lambda request: (
        request.method == "DELETE" and "-inspect-" in request.path
    ),
}


@pytest.mark.parametrize("moment", first_of(MOMENTS))
def test_killed_at_any_write_the_end_is_the_same(
    moment: Callable[[Request], bool],
    cluster: Cluster,
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
    tmp_path: Path,
    kube: Any,
) -> None:
    [node] = fake_nodes(L4)
    with ApiProxy(cluster.kubeconfig, tmp_path) as proxy, PromiseWatch(kube) as promises:
        victim = start_operator(proxy.kubeconfig)
        killed: list[Request] = []

        def trip(request: Request) -> bool:
            if not killed and models.name.encode() in request.path.encode() and moment(request):
                killed.append(request)
                victim.kill()
            return bool(killed)

        def services() -> list[str]:
            found = models.core.list_namespaced_service(models.name).items
            return sorted(service.metadata.name for service in found)

        proxy.tripwire = trip
        models.apply("small", small())
        wait_for(lambda: killed, 60, "the operator makes the write that it is killed at", victim.tail)
        start_operator()
        models.wait_ready("small")
        [pod] = models.pods()
        assert pod.metadata.name == f"{models.status('small')['currentRevision']}-r0-s0-a0"
        assert pod.spec.node_name == node
        # The status is written before the Service, so a pod that is ready at once may be told first.
        wait_for(lambda: services() == ["small"], 30, "the Service is there", services)
        wait_for(lambda: not models.pods("plimsoll-inspect"), 30, "no inspect pod is left")
        assert len(models.revisions()) == 1
        assert promises.seen
        assert promises.violations == []


def test_killed_when_ready_and_started_again_no_pod_is_touched(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(L4)
    first = start_operator()
    models.apply("small", small())
    models.wait_ready("small")
    before = [(pod.metadata.name, pod.metadata.uid, pod.metadata.resource_version) for pod in models.pods()]
    first.kill()
    second = start_operator()
    second.wait_rounds()
    after = [(pod.metadata.name, pod.metadata.uid, pod.metadata.resource_version) for pod in models.pods()]
    assert after == before
    assert models.condition("small", "Ready")["status"] == "True"
    assert second.stop() == 0


def test_a_new_default_image_touches_no_pod(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    settings: dict[str, str],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(L4)
    settings["worker_image"] = "worker:1"
    first = start_operator()
    models.apply("small", small())
    models.wait_ready("small")
    before = models.pod_uids()
    assert first.stop() == 0
    settings["worker_image"] = "worker:2"
    second = start_operator()
    second.wait_rounds()
    assert models.pod_uids() == before


def test_more_deployments_than_gpus_never_overbook_one(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
    kube: Any,
) -> None:
    from tests.cluster.lifecycle.test_path import TWO_L4

    fake_nodes(TWO_L4)
    with PromiseWatch(kube) as promises:
        operator = start_operator()
        names = {f"d{number}" for number in range(4)}
        for name in sorted(names):
            models.apply(name, small())

        def ready(among: set[str]) -> set[str]:
            return {name for name in among if models.condition(name, "Ready").get("status") == "True"}

        wait_for(lambda: len(ready(names)) == 2, 120, "two of four have a GPU", lambda: sorted(ready(names)))
        operator.kill()
        start_operator()
        served = min(ready(names))
        models.delete(served)
        left = names - {served}
        wait_for(
            lambda: len(ready(left)) == 2, 60, "a third takes the freed GPU", lambda: sorted(ready(left))
        )
        [waiting] = left - ready(left)
        told = models.wait_condition(waiting, "Planned", "False")
        assert told["reason"].startswith("Insufficient")
        assert promises.seen
        assert promises.violations == []
