"""Roll-outs, scaling and failures on the real API server, scheduler and controllers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dev.cluster.nodes import NodePool
from kubernetes import client
from tests.cluster.conftest import L4
from tests.cluster.lifecycle.conftest import Namespace, revision_of, small
from tests.cluster.lifecycle.operator_process import Operator
from tests.cluster.lifecycle.promises import PromiseWatch
from tests.cluster.lifecycle.test_path import TWO_L4

from plimsoll_worker.launch import ExitCode, ExitReason

pytestmark = [pytest.mark.cluster, pytest.mark.node]

THREE_L4 = NodePool("l4", "NVIDIA-L4", 1, 3, 23034, "8.9", "48", "192Gi", "1Ti", 58)
CHANGE = {"workload": {"maxConcurrentSequences": 2}}


class Answering(PromiseWatch):
    """Also the fewest worker pods of a namespace that answered at once since `begin`."""

    def __init__(self, kube: Any, namespace: str) -> None:
        super().__init__(kube)
        self._namespace = namespace
        self.answering: set[str] = set()
        """UIDs of those that answer."""
        self.fewest = -1

    def begin(self) -> None:
        """When the watch has seen all of them answer: it comes later than the status."""
        self.fewest = len(self.answering)

    def pod_seen(self, event: str, pod: Any) -> None:
        meta = pod["metadata"]
        if meta["namespace"] != self._namespace:
            return
        conditions = pod.get("status", {}).get("conditions") or []
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        if ready and event != "DELETED" and not meta.get("deletionTimestamp"):
            self.answering.add(meta["uid"])
        else:
            self.answering.discard(meta["uid"])
        if self.fewest >= 0:
            self.fewest = min(self.fewest, len(self.answering))


def rolled_out(models: Namespace, replicas: int, before: str) -> bool:
    status = models.status("small")
    pods = models.pods()
    return bool(
        status["currentRevision"] == status["updateRevision"] != before
        and status.get("updatedReadyReplicas") == replicas
        and [revision_of(pod.metadata.name) for pod in pods] == [status["updateRevision"]] * replicas
    )


@pytest.mark.parametrize(
    ("pool", "fewest", "manner"),
    [(THREE_L4, 2, "Surging"), (TWO_L4, 1, "Recreating")],
    ids=["with room for one more", "without room"],
)
def test_a_roll_out_serves_as_much_as_the_room_allows(
    pool: NodePool,
    fewest: int,
    manner: str,
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
    kube: Any,
) -> None:
    fake_nodes(pool)
    with Answering(kube, models.name) as watch:
        models.apply("small", small(replicas=2, rollout={"drainSeconds": 0}))
        models.wait_ready("small")
        wait_for(lambda: len(watch.answering) == 2, 30, "the watch sees two replicas answer")
        before = models.status("small")["currentRevision"]
        watch.begin()
        models.patch("small", CHANGE)
        wait_for(lambda: rolled_out(models, 2, before), 120, "rolled out", lambda: models.get("small"))
        models.wait_ready("small")
        wait_for(
            lambda: watch.answering == set(models.pod_uids().values()), 30, "the watch has seen all of it"
        )
        assert watch.fewest >= fewest
        assert watch.violations == []
    models.wait_events("small", manner)
    wait_for(lambda: len(models.revisions()) == 1, 30, "the old revision is gone", models.revisions)


def test_a_new_revision_that_cannot_start_leaves_the_old_one_serving_and_is_told_late(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(TWO_L4)
    models.apply("small", small(rollout={"drainSeconds": 0}))
    models.wait_ready("small")
    before = models.pod_uids()
    models.limit("pods", {"pods": "0"})
    models.patch("small", {"rollout": {"progressDeadlineSeconds": 3}} | CHANGE)
    told = models.wait_condition("small", "Scheduled", "False", "PodRefused")
    assert "exceeded quota" in told["message"]
    operator.wait_rounds()
    assert before.items() <= models.pod_uids().items()
    assert models.condition("small", "Available")["status"] == "True"
    models.core.delete_namespaced_resource_quota("pods", models.name)
    models.wait_ready("small")
    wait_for(lambda: models.pod_uids().keys().isdisjoint(before), 60, "the new revision serves alone")


def _fail(models: Namespace, pod: Any, reason: ExitReason) -> None:
    """The pod's container ends with that message and stays in its back-off."""
    told = {"plimsoll.dev/fake-exit-code": "1", "plimsoll.dev/fake-exit-message": reason.to_json()}
    models.core.patch_namespaced_pod(pod.metadata.name, models.name, {"metadata": {"annotations": told}})


def test_after_out_of_memory_another_configuration_is_rolled_out(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(L4)
    first = start_operator()
    models.apply("small", small(rollout={"drainSeconds": 0}))
    models.wait_ready("small")
    before = models.status("small")
    [pod] = models.pods()
    _fail(models, pod, ExitReason(reason=ExitCode.CUDA_OUT_OF_MEMORY, message="12 MiB short"))
    wait_for(lambda: models.status("small").get("exclusions"), 30, "the configuration is excluded")
    first.kill()
    start_operator()
    wait_for(
        lambda: rolled_out(models, 1, before["currentRevision"]),
        60,
        "rolled out",
        lambda: models.get("small"),
    )
    models.wait_ready("small")
    status = models.status("small")
    assert status["plans"][0]["maxBatchedTokens"] < before["plans"][0]["maxBatchedTokens"]
    assert "12 MiB short" in models.condition("small", "Planned")["message"]


def test_a_crash_loop_ends_with_the_budget_until_somebody_asks_again(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(L4)
    models.apply("small", small(rollout={"drainSeconds": 0, "maxRestarts": 1}))
    models.wait_ready("small")
    [pod] = models.pods()
    _fail(models, pod, ExitReason(reason=ExitCode.ENGINE_FAILED, message="no kernel"))
    told = models.wait_condition("small", "Progressing", "False", "RestartBudgetExhausted")
    assert "no kernel" in told["message"]
    wait_for(lambda: not models.pods(), 30, "no pod is left")
    assert models.condition("small", "Ready")["reason"] == "EngineFailed"
    models.annotate("small", {"plimsoll.dev/retry": "1"})
    models.wait_ready("small")


def test_a_drain_is_honoured_one_replica_at_a_time(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    operator: Operator,
    wait_for: Callable[..., Any],
    kube: Any,
) -> None:
    """The free node is cordoned until the second eviction was refused: else a replica that came back
    meanwhile would rightly allow it."""
    nodes = fake_nodes(TWO_L4, NodePool("spare", "NVIDIA-L4", 1, 1, 23034, "8.9", "16", "64Gi", "350Gi", 58))
    models.apply("small", small(replicas=2, rollout={"drainSeconds": 0}))
    models.wait_ready("small")
    policy = client.PolicyV1Api(kube)

    def allowed() -> bool:
        budget = policy.read_namespaced_pod_disruption_budget("small", models.name)
        return bool(budget.status.disruptions_allowed == 1)

    wait_for(allowed, 30, "the budget allows one eviction")
    first, second = models.pods()
    [free] = set(nodes) - {first.spec.node_name, second.spec.node_name}
    for node in (first.spec.node_name, free):
        models.core.patch_node(node, {"spec": {"unschedulable": True}})
    eviction = {"metadata": {"name": first.metadata.name}}
    models.core.create_namespaced_pod_eviction(first.metadata.name, models.name, eviction)
    with pytest.raises(client.ApiException) as refused:
        models.core.create_namespaced_pod_eviction(
            second.metadata.name, models.name, {"metadata": {"name": second.metadata.name}}
        )
    assert refused.value.status == 429
    models.core.patch_node(free, {"spec": {"unschedulable": False}})
    wait_for(
        lambda: (
            sorted(pod.spec.node_name or "" for pod in models.pods()) == sorted([free, second.spec.node_name])
        ),
        60,
        "the drained replica is elsewhere",
        lambda: models.get("small"),
    )
    assert second.metadata.uid in models.pod_uids().values()

    def told() -> list[bool]:
        return [one["ready"] for one in models.status("small")["replicaStatuses"]]

    wait_for(lambda: told() == [True, True], 30, "both replicas answer", lambda: models.get("small"))
    models.wait_ready("small")
    assert all(status["restarts"] == 0 for status in models.status("small")["replicaStatuses"])
