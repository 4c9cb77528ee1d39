"""GPUs by class and restarts, as Prometheus is told."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from tests.unit.cluster.world import gpu_node

from plimsoll.actuate.ownership import Owner
from plimsoll.cluster.gauges import ClusterGauges
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.state import ClusterState
from plimsoll.inventory.nodes import node_view, pod_view

CLASS = {"product": "NVIDIA-L4", "sharing": "None"}


def pod(name: str, gpus: int, *, restarts: int = 0, own: bool = False, **status: Any) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "plimsoll",
        "app.kubernetes.io/name": "plimsoll-worker",
        "plimsoll.dev/deployment": "small",
    }
    containers = [{"name": "main", "restartCount": restarts, "state": {"running": {}}}]
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "uid": f"uid-{name}",
            "labels": labels if own else {},
            "ownerReferences": [Owner("models", "small", "uid-small").reference()] if own else [],
            "creationTimestamp": "2026-11-23T04:00:00Z",
        },
        "spec": {
            "nodeName": "g",
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}],
        },
        "status": {"phase": "Running", "containerStatuses": containers} | status,
    }


def test_gpus_are_told_by_product_used_by_anybody_and_promised() -> None:
    state, ledger, registry = ClusterState(lambda: None), Ledger(), CollectorRegistry()
    registry.register(ClusterGauges(state, ledger))
    state.nodes.replace([gpu_node("g", 8)])
    state.pods.replace([pod("a", 2, own=True, restarts=3), pod("b", 1), pod("c", 1, phase="Succeeded")])
    promised = pod_view(pod("d", 4))
    assert promised is not None
    shown = [entry.view for entry in state.pods.entries().values() if entry.view]
    ledger.promise(promised, node_view(gpu_node("g", 8)), shown, 0.0)
    assert registry.get_sample_value("plimsoll_gpus_total", CLASS) == 8
    assert registry.get_sample_value("plimsoll_gpus_used", CLASS) == 3
    assert registry.get_sample_value("plimsoll_gpus_promised", CLASS) == 4
    restarts = registry.get_sample_value("plimsoll_worker_restarts", {"namespace": "models", "name": "small"})
    assert restarts == 3


def test_what_has_gone_is_told_no_more() -> None:
    state, registry = ClusterState(lambda: None), CollectorRegistry()
    registry.register(ClusterGauges(state, Ledger()))
    state.nodes.replace([gpu_node("g", 8)])
    assert registry.get_sample_value("plimsoll_gpus_total", CLASS) == 8
    state.nodes.replace([])
    assert registry.get_sample_value("plimsoll_gpus_total", CLASS) is None
