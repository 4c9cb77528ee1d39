"""Promises: nothing is given twice between a pod's creation and its first appearance."""

from __future__ import annotations

import pytest
from tests.unit.cluster.world import gpu_node

from plimsoll.cluster.reservations import EXPIRY_SECONDS, Ledger, Overbooked
from plimsoll.cluster.state import ClusterState
from plimsoll.inventory.nodes import node_view
from plimsoll.inventory.views import PodView, Resources

GPU = "nvidia.com/gpu"
NODE = node_view(gpu_node("g", 2))


def pod(name: str, gpus: int = 1, *, node: str = "g") -> PodView:
    requests = Resources(cpu_millis=100, memory_bytes=1 << 30, pods=1, extended={GPU: gpus})
    return PodView("models", name, f"uid-{name}", "", node, "Pending", False, requests)


def test_promises_add_up_to_what_is_there_and_no_further() -> None:
    ledger = Ledger()
    ledger.promise(pod("a"), NODE, [], 0.0)
    ledger.promise(pod("b"), NODE, [], 0.0)
    with pytest.raises(Overbooked, match="1 more than it has left"):
        ledger.promise(pod("c"), NODE, [], 0.0)
    assert {name for _, name in ledger.views()} == {"a", "b"}


def test_pods_that_are_shown_count_too() -> None:
    with pytest.raises(Overbooked):
        Ledger().promise(pod("b", 2), NODE, [pod("a")], 0.0)


def test_pods_of_other_nodes_do_not_count() -> None:
    Ledger().promise(pod("b", 2), NODE, [pod("a", 2, node="elsewhere")], 0.0)


def test_the_same_pod_promised_again_counts_once() -> None:
    ledger = Ledger()
    ledger.promise(pod("a", 2), NODE, [], 0.0)
    ledger.promise(pod("a", 2), NODE, [pod("a", 2)], 1.0)
    assert len(ledger.views()) == 1


def test_memory_is_promised_as_well() -> None:
    requests = Resources(memory_bytes=300 << 30)
    big = PodView("models", "big", "uid", "", "g", "Pending", False, requests)
    with pytest.raises(Overbooked, match="memory"):
        Ledger().promise(big, NODE, [], 0.0)


def test_an_unknown_node_is_a_fault() -> None:
    with pytest.raises(Overbooked, match="no node"):
        Ledger().promise(pod("a", node="nowhere"), None, [], 0.0)


def test_a_pod_that_came_and_went_between_two_snapshots_holds_nothing() -> None:
    ledger = Ledger()
    state = ClusterState(lambda: None, ledger.release)
    ledger.promise(pod("a"), NODE, [], 0.0)
    body = {"metadata": {"namespace": "models", "name": "a", "uid": "uid-a"}, "spec": {"containers": []}}
    state.pods.apply("ADDED", body)
    state.pods.apply("DELETED", body)
    assert not state.snapshot().pods
    assert not ledger.views()


def test_a_promise_ends_when_the_pod_is_shown_released_or_forgotten() -> None:
    ledger = Ledger()
    for name in ("shown", "released"):
        ledger.promise(pod(name), NODE, [], 0.0)
    ledger.settle([("models", "shown")], 1.0)
    ledger.release(("models", "released"))
    assert not ledger.views()
    ledger.promise(pod("lost"), NODE, [], 1.0)
    ledger.settle([], EXPIRY_SECONDS)
    assert ledger.views()
    ledger.settle([], 1.0 + EXPIRY_SECONDS)
    assert not ledger.views()
