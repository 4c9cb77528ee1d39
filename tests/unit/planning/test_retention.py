"""What runs stays: a replica is only moved when its node no longer carries it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.planning.builders import (
    GIB,
    L4,
    decide_one,
    gpu_node,
    llama,
    node,
    places,
    pod,
    request,
    snapshot,
)

from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus
from plimsoll.inventory.views import NodeView, PodView
from plimsoll.planning.plan import plan

NOT_TOLERATED = {"key": "maintenance", "value": "", "effect": "NoExecute"}


def in_force(*nodes: str, facts: Any = None, **fields: Any) -> PlanStatus:
    """A plan as it was once made, with one replica on each of `nodes`."""
    made = decide_one([gpu_node("any", gpus=64)], request(facts=facts, **fields)).plan
    assert made is not None
    placements = [PlanPlacement(replica=i, stage=0, node=name, gpus=1) for i, name in enumerate(nodes)]
    return made.model_copy(update={"placements": placements})


def worker(on: str, replica: int = 0, **changes: Any) -> PodView:
    labels = {
        "plimsoll.dev/replica": str(replica),
        "plimsoll.dev/stage": "0",
        "plimsoll.dev/revision": "a-0000",
    }
    changes = {"gpus": 1, "owner": "uid-a", "labels": labels} | changes
    return pod(f"a-r{replica}-{on}", on, **changes)


def stays(nodes: list[NodeView], pods: list[PodView]) -> list[str]:
    return places(decide_one(nodes, request(current=in_force("b")), pods=pods))


STAYS: dict[str, tuple[NodeView, list[PodView]]] = {
    "nothing happened": (gpu_node("b"), [worker("b")]),
    "its pod is not created yet": (gpu_node("b"), []),
    "its pod is pinned and not bound yet": (gpu_node("b", gpus=1), [worker("b", bound=False)]),
    "its own pod takes the last GPU": (gpu_node("b", gpus=1), [worker("b")]),
    "the node was cordoned": (gpu_node("b", cordoned=True), [worker("b")]),
    "the node is not ready for a moment": (gpu_node("b", ready=False), [worker("b")]),
    "the node lost a label": (gpu_node("b", labels={"nvidia.com/gpu.count": "9"}), [worker("b")]),
    "its pod is replaced by a new attempt": (
        gpu_node("b", gpus=1),
        [worker("b", terminating=True), worker("b", bound=False)],
    ),
}


@pytest.mark.parametrize(("at", "pods"), STAYS.values(), ids=STAYS.keys())
def test_a_placement_stays_when(at: NodeView, pods: list[PodView]) -> None:
    assert stays([gpu_node("a"), at], pods) == ["b"]


MOVES: dict[str, tuple[NodeView | None, list[PodView]]] = {
    "its node is gone": (None, [worker("b")]),
    "its pod was evicted from a dead node": (gpu_node("b", ready=False), [worker("b", terminating=True)]),
    "its pod never got to a node that is cordoned": (
        gpu_node("b", cordoned=True),
        [worker("b", bound=False)],
    ),
    "its node evicts": (gpu_node("b", taints=[NOT_TOLERATED]), [worker("b", terminating=True)]),
    "another pod took its GPUs first": (gpu_node("b", gpus=1), [pod("thief", "b", gpus=1)]),
}


@pytest.mark.parametrize(("at", "pods"), MOVES.values(), ids=MOVES.keys())
def test_a_placement_moves_when(at: NodeView | None, pods: list[PodView]) -> None:
    assert stays([gpu_node("a"), *([at] if at else [])], pods) == ["a"]


def test_an_excluded_node_keeps_what_runs_there() -> None:
    asked = request(replicas=2, current=in_force("b"), excluded=frozenset({"b"}))
    assert places(decide_one([gpu_node("a"), gpu_node("b")], asked, pods=[worker("b")])) == ["b", "a"]


def test_only_the_lost_replica_is_placed_anew() -> None:
    asked = request(replicas=3, current=in_force("x", "a", "c"))
    pods = [worker("a", 1), worker("c", 2)]
    assert places(decide_one([gpu_node("a"), gpu_node("c")], asked, pods=pods)) == ["a", "a", "c"]


def test_more_replicas_get_the_configuration_in_force() -> None:
    """A cheaper kind of GPU came in meanwhile; replicas of one revision are alike all the same."""
    current = in_force("b", facts=llama(2))
    assert current.product != L4
    asked = request(facts=llama(2), replicas=2, current=current)
    decision = decide_one([gpu_node("l", L4, 4), gpu_node("b", gpus=2)], asked, pods=[worker("b")])
    assert places(decision) == ["b", "b"]
    assert decision.plan is not None
    assert decision.plan.id == current.id


def test_fewer_replicas_drop_the_last() -> None:
    asked = request(replicas=1, current=in_force("b", "c"))
    assert places(decide_one([gpu_node("b"), gpu_node("c")], asked, pods=[worker("b"), worker("c", 1)])) == [
        "b"
    ]


def test_when_nothing_of_it_runs_the_configuration_is_chosen_again() -> None:
    asked = request(facts=llama(2), current=in_force("gone", facts=llama(2)))
    decision = decide_one([gpu_node("l", L4, 4), gpu_node("h")], asked)
    assert places(decision) == ["l"]


def test_what_runs_stays_before_an_urgent_newcomer() -> None:
    urgent = request("urgent", priority=1000)
    decisions = plan(
        snapshot([gpu_node("b", gpus=1)], urgent, request(current=in_force("b")), pods=[worker("b")])
    )
    assert places(decisions["uid-a"]) == ["b"]
    assert decisions["uid-urgent"].plan is None


def test_a_promised_place_is_not_given_to_a_newcomer() -> None:
    """The plan is in status, its pod is not created yet."""
    urgent = request("urgent", priority=1000)
    decisions = plan(snapshot([gpu_node("b", gpus=1)], urgent, request(current=in_force("b"))))
    assert places(decisions["uid-a"]) == ["b"]
    assert decisions["uid-urgent"].plan is None


def test_pods_of_another_revision_hold_their_own() -> None:
    old = worker("b", labels={"plimsoll.dev/revision": "a-ffff", "plimsoll.dev/replica": "0"})
    decision = decide_one([gpu_node("b", gpus=1)], request(), pods=[old])
    assert decision.plan is None


def test_a_suspended_deployment_keeps_its_plan_as_it_was() -> None:
    current = in_force("gone")
    decision = decide_one([gpu_node("a")], request(suspend=True, current=current))
    assert decision.plan == current


def test_a_running_pod_counts_with_what_it_asks_for_itself() -> None:
    """An older operator may have computed other requests; what runs is not over-booked by the new formula."""
    current = in_force("b", placement={"device": "GPU"})
    small = worker("b", memory=1 * GIB)
    decision = decide_one([gpu_node("b", gpus=1, memory="2Gi")], request(current=current), pods=[small])
    assert places(decision) == ["b"]


def test_a_cpu_placement_stays_on_its_node() -> None:
    made = decide_one([node("n")], request(facts=llama(1), placement={"device": "CPU"})).plan
    assert made is not None
    asked = request(facts=llama(1), placement={"device": "CPU"}, current=made)
    pods = [worker("n", gpus=0, memory=made.host_memory_bytes)]
    assert places(decide_one([node("a", memory="12Gi"), node("n", memory="12Gi")], asked, pods=pods)) == ["n"]
