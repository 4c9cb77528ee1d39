"""From apply to Ready on a real API server, scheduler and garbage collector; inspect pods really run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dev.cluster.nodes import NodePool
from kubernetes import client
from tests.cluster.conftest import L4
from tests.cluster.lifecycle.conftest import WIDE_MODEL, Namespace, revision_of, small
from tests.cluster.lifecycle.operator_process import Operator

pytestmark = [pytest.mark.cluster, pytest.mark.node]

ONE_L4 = L4
TWO_L4 = NodePool("l4", "NVIDIA-L4", 2, 1, 23034, "8.9", "16", "64Gi", "350Gi", 58)


def test_six_lines_become_ready(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    [node] = fake_nodes(ONE_L4)
    models.apply("small", {"model": small()["model"]})
    models.wait_ready("small")
    status = models.status("small")
    assert status["plans"][0]["placements"] == [{"replica": 0, "stage": 0, "node": node, "gpus": 1}]
    [pod] = models.pods()
    assert pod.spec.node_name == node
    assert pod.metadata.name == f"{status['currentRevision']}-r0-s0-a0"
    wait_for(lambda: not models.pods("plimsoll-inspect"), 30, "the inspect pod is gone")
    models.wait_events("small", "ModelResolved", "Planned", "Ready")
    ports = {
        port.name: port.port for port in models.core.read_namespaced_service("small", models.name).spec.ports
    }
    assert ports == {"http": 8000}
    models.wait_condition("small", "Verified", "Unknown", "ReportUnreachable")
    wait_for(lambda: operator.page("/healthz", health=True)[0] == 200, 30, "it says that it lives")


def test_scale_goes_through_the_scale_subresource_and_keeps_what_runs(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(TWO_L4)
    models.apply("small", small())
    models.wait_ready("small")
    first = models.pod_uids()
    models.scale("small", 2)
    wait_for(lambda: models.status("small")["readyReplicas"] == 2, 30, "two replicas answer")
    assert first.items() <= models.pod_uids().items()
    models.scale("small", 1)
    wait_for(lambda: models.pod_uids() == first, 60, "the first replica alone is left", models.pod_uids)
    models.patch("small", {"suspend": True})
    wait_for(lambda: not models.pods(), 60, "no pod is left")
    models.wait_condition("small", "Ready", "False", "Suspended")
    models.patch("small", {"suspend": False})
    models.wait_ready("small")


def test_nothing_fits_is_told_with_bytes_and_starts_nothing(
    models: Namespace, fake_nodes: Callable[..., list[str]], operator: Operator
) -> None:
    fake_nodes(ONE_L4)
    models.apply("wide", {"model": {"huggingFace": {"repo": WIDE_MODEL}}})
    told = models.wait_condition("wide", "Planned", "False")
    assert "GiB" in told["message"]
    assert models.condition("wide", "Ready")["status"] == "False"
    operator.wait_rounds()
    assert not models.pods()


def test_a_missing_repository_is_told_and_leaves_no_pod(
    models: Namespace, operator: Operator, wait_for: Callable[..., Any]
) -> None:
    models.apply("lost", {"model": {"huggingFace": {"repo": "nobody/nothing"}}})
    told = models.wait_condition("lost", "ModelResolved", "False", "ModelNotFound")
    assert "nobody/nothing" in told["message"]
    wait_for(lambda: not models.leftovers(), 30, "no pod is left behind", models.leftovers)


@pytest.mark.parametrize("moment", ["inspecting", "planned", "ready"])
def test_deleting_at_any_moment_leaves_nothing(
    moment: str,
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(ONE_L4)
    models.apply("small", small())
    if moment == "inspecting":
        wait_for(lambda: models.pods("plimsoll-inspect"), 30, "the inspect pod is there")
    elif moment == "planned":
        wait_for(lambda: models.status("small").get("plans"), 60, "the plan is in status")
    else:
        models.wait_ready("small")
    models.delete("small")
    wait_for(lambda: not models.leftovers(), 60, "everything is gone", models.leftovers)


def test_a_spec_change_replaces_the_pods(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(ONE_L4)
    models.apply("small", small())
    models.wait_ready("small")
    before = models.status("small")["currentRevision"]
    models.patch("small", {"workload": {"maxConcurrentSequences": 2}})

    def replaced() -> bool:
        status = models.status("small")
        return bool(
            status["currentRevision"] == status["updateRevision"] != before and status["readyReplicas"]
        )

    wait_for(replaced, 60, "the new revision serves", lambda: models.get("small"))
    models.wait_ready("small")
    current = models.status("small")["currentRevision"]
    # A pod takes a moment to end, and old revisions are deleted while the operator goes on.
    wait_for(
        lambda: [revision_of(name) for name in models.pod_uids()] == [current],
        30,
        "the new revision has the only pod",
        models.pod_uids,
    )
    wait_for(lambda: models.revisions() == [current], 30, "the old revision is gone", models.revisions)


def test_a_refused_pod_is_told_in_the_servers_words_until_it_is_let_in(
    models: Namespace, fake_nodes: Callable[..., list[str]], operator: Operator
) -> None:
    fake_nodes(ONE_L4)
    models.limit("gpus", {"requests.nvidia.com/gpu": "0"})
    models.apply("small", small())
    told = models.wait_condition("small", "Scheduled", "False", "PodRefused")
    assert "exceeded quota: gpus" in told["message"]
    models.core.delete_namespaced_resource_quota("gpus", models.name)
    models.wait_ready("small")


def test_a_pod_deleted_by_hand_comes_back(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(ONE_L4)
    models.apply("small", small())
    models.wait_ready("small")
    [old] = models.pods()
    models.core.delete_namespaced_pod(old.metadata.name, models.name, grace_period_seconds=0)
    [fresh] = wait_for(
        lambda: [pod for pod in models.pods() if pod.metadata.uid != old.metadata.uid],
        30,
        "a new pod is there",
    )
    assert fresh.metadata.labels["plimsoll.dev/attempt"] == "1"

    def told() -> list[tuple[int, bool]]:
        return [(one["attempt"], one["ready"]) for one in models.status("small")["replicaStatuses"]]

    wait_for(lambda: told() == [(1, True)], 30, "the new pod answers", told)
    models.wait_ready("small")


def test_a_pod_the_scheduler_refuses_moves_to_another_node(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    settings: dict[str, str],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
) -> None:
    """The foreign pod's anti-affinity is a rule of the scheduler that planning does not read."""
    settings["unschedulable_seconds"] = "2"
    first, second = fake_nodes(TWO_L4)
    selector = {"matchLabels": {"app.kubernetes.io/managed-by": "plimsoll"}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    hermit = {
        "metadata": {"name": "hermit"},
        "spec": {
            "nodeName": first,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "c", "image": "none"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
        },
    }
    models.core.create_namespaced_pod(models.name, hermit)
    wait_for(
        lambda: models.core.read_namespaced_pod("hermit", models.name).status.phase == "Running",
        30,
        "the hermit runs",
    )
    start_operator()
    models.apply("small", small())
    models.wait_ready("small")
    [pod] = models.pods()
    assert pod.spec.node_name == second


def test_priority_decides_who_gets_the_last_gpu(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_operator: Callable[..., Operator],
    kube: Any,
) -> None:
    """Both are planned in the same round: their models are known before there is anything to place."""
    fake_nodes(ONE_L4)
    scheduling = client.SchedulingV1Api(kube)
    scheduling.create_priority_class({"metadata": {"name": f"{models.name}-high"[:63]}, "value": 1000})
    try:
        models.apply("low", small(replicas=0))
        models.apply("high", small(replicas=0, placement={"priorityClassName": f"{models.name}-high"[:63]}))
        first = start_operator()
        for name in ("low", "high"):
            models.wait_condition(name, "ModelResolved", "True")
        first.kill()
        for name in ("low", "high"):
            models.scale(name, 1)
        start_operator()
        models.wait_ready("high")
        told = models.wait_condition("low", "Planned", "False")
        assert told["reason"].startswith("Insufficient")
    finally:
        scheduling.delete_priority_class(f"{models.name}-high"[:63])
