"""Promises: nothing is given twice between a pod's creation and its first appearance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    assert {name for _, name in ledger.held()} == {"a", "b"}


def test_pods_that_are_shown_count_too() -> None:
    with pytest.raises(Overbooked):
        Ledger().promise(pod("b", 2), NODE, [pod("a")], 0.0)


def test_pods_of_other_nodes_do_not_count() -> None:
    Ledger().promise(pod("b", 2), NODE, [pod("a", 2, node="elsewhere")], 0.0)


def test_the_same_pod_promised_again_counts_once() -> None:
    ledger = Ledger()
    ledger.promise(pod("a", 2), NODE, [], 0.0)
    ledger.promise(pod("a", 2), NODE, [pod("a", 2)], 1.0)
    assert len(ledger.held()) == 1


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
    assert not ledger.held()


def test_a_promise_ends_when_the_pod_is_shown_released_or_forgotten() -> None:
    ledger = Ledger()
    for name in ("shown", "released"):
        ledger.promise(pod(name), NODE, [], 0.0)
    ledger.settle([("models", "shown")], 1.0, 0.0)
    ledger.release(("models", "released"))
    assert not ledger.held()
    ledger.promise(pod("lost"), NODE, [], 1.0)
    ledger.settle([], EXPIRY_SECONDS, EXPIRY_SECONDS)
    assert ledger.held(), "nobody has answered, so a list proves nothing"
    ledger.settle([], 1.0 + EXPIRY_SECONDS, 0.0)
    assert not ledger.held()


def body(name: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "models", "name": name, "uid": name}, "spec": {"containers": []}}


@pytest.mark.parametrize(
    ("begun", "stays"), [(1.5, True), (2.5, False)], ids=["before the answer", "after the answer"]
)
def test_a_list_begun_after_the_pod_was_made_proves_that_it_is_gone(begun: float, *, stays: bool) -> None:
    now, woken = [0.0], []
    ledger = Ledger()
    state = ClusterState(lambda: woken.append(now[0]), ledger.release, monotonic=lambda: now[0])
    ledger.promise(pod("a"), NODE, [], 1.0)
    ledger.confirm(("models", "a"), 2.0)

    def pages() -> Iterator[dict[str, Any]]:
        now[0] = 9.0  # The list takes its time; what counts is when it was asked for.
        yield body("other")

    now[0] = begun
    state.pods.replace(pages())
    view = state.snapshot()
    ledger.settle(view.pods, 9.5, view.pods_listed_at)
    assert bool(ledger.held()) is stays
    assert woken == [9.0]


def test_a_list_that_says_what_was_known_wakes_the_planner_all_the_same() -> None:
    woken: list[None] = []
    state = ClusterState(lambda: woken.append(None))
    state.pods.replace([])
    assert woken, "it may prove that a promised pod is gone"


# --- answers to own writes


def service(version: int, **spec: Any) -> dict[str, Any]:
    meta = {
        "namespace": "models",
        "name": "a",
        "uid": "s",
        "resourceVersion": str(version),
        "ownerReferences": [
            {
                "apiVersion": "plimsoll.dev/v1alpha1",
                "kind": "LLMDeployment",
                "name": "a",
                "uid": "a",
                "controller": True,
            }
        ],
    }
    return {"metadata": meta, "spec": spec}


def test_an_answer_that_comes_before_the_watch_is_known_at_once() -> None:
    state = ClusterState(lambda: None)
    state.services.apply("ADDED", service(4, type="NodePort"))
    state.services.learn(service(5, type="ClusterIP"))
    assert state.snapshot().services["models", "a"]["spec"] == {"type": "ClusterIP"}


@pytest.mark.parametrize(
    ("event", "known"), [("DELETED", None), ("MODIFIED", {"type": "NodePort"})], ids=["deleted", "edited"]
)
def test_an_answer_that_comes_late_does_not_hide_what_was_done_since(event: str, known: Any) -> None:
    state = ClusterState(lambda: None)
    state.services.apply("ADDED", service(5, type="ClusterIP"))
    state.services.apply(event, service(6, type="NodePort"))
    state.services.learn(service(5, type="ClusterIP"))
    assert state.snapshot().services.get(("models", "a"), {}).get("spec") == known
