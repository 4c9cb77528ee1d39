"""The stages of a replica share a domain of nodes where a topology key is given."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.instances import ENGINE, RACK, instance
from tests.bench.oracle import Choices, optimum
from tests.unit.planning.builders import gpu_node, llama, places, pod, request, snapshot

from plimsoll.inventory.views import NodeView
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Snapshot

TWO_STAGES = {"maxConcurrentSequences": 2}


def big(name: str = "a", **changes: Any) -> DeploymentRequest:
    """70 billion parameters: two stages of one H100, where no node has two GPUs."""
    fields: dict[str, Any] = {"workload": TWO_STAGES, "placement": {"topologyKey": RACK}} | changes
    return request(name, facts=llama(70, layers=80), **fields)


def in_rack(name: str, rack: str, gpus: int = 1) -> NodeView:
    return gpu_node(name, gpus=gpus, labels={RACK: rack} if rack else {})


def decide(nodes: list[NodeView], *asked: DeploymentRequest, taken: tuple[str, ...] = ()) -> list[Decision]:
    pods = [pod(f"x-{name}", name, gpus=1) for name in taken]
    decisions = plan(snapshot(nodes, *asked, pods=pods, capabilities=ENGINE))
    return [decisions[one.uid] for one in asked]


def test_stages_share_a_domain() -> None:
    nodes = [in_rack("a", "r1"), in_rack("b", "r2"), in_rack("c", "r2")]
    (decision,) = decide(nodes, big())
    assert places(decision) == ["b", "c"]


def test_without_a_key_they_lie_anywhere() -> None:
    nodes = [in_rack("a", "r1"), in_rack("b", "r2"), in_rack("c", "r2")]
    (decision,) = decide(nodes, big(placement={}))
    assert places(decision) == ["a", "b"]


def test_the_domain_with_the_least_room_to_spare_is_taken() -> None:
    nodes = [in_rack(f"a{i}", "r1") for i in range(4)] + [in_rack(f"b{i}", "r2") for i in range(2)]
    (decision,) = decide(nodes, big())
    assert places(decision) == ["b0", "b1"]


def test_each_replica_has_its_own_domain() -> None:
    nodes = [in_rack(f"{rack}{i}", rack) for rack in ("r1", "r2", "r3") for i in range(3)]
    (decision,) = decide(nodes, big(replicas=3))
    assert places(decision) == ["r10", "r11", "r20", "r21", "r30", "r31"]


def test_a_replica_on_one_node_needs_no_label() -> None:
    (decision,) = decide([in_rack("a", "")], request(placement={"topologyKey": RACK}))
    assert places(decision) == ["a"]


def test_stages_that_must_stay_on_one_node_need_no_label() -> None:
    alone = {"pipeline": 2, "tensor": 1, "multiNode": "Never"}
    (decision,) = decide([in_rack("a", "r1"), in_rack("b", "", 2)], big(parallelism=alone))
    assert places(decision) == ["b", "b"]


def test_nodes_without_the_label_are_named() -> None:
    (decision,) = decide([in_rack("a", ""), in_rack("b", ""), in_rack("c", "r1")], big())
    assert decision.plan is None
    assert decision.rejection is not None
    two = next(r for r in decision.rejection.rejected if "PP2" in r.option)
    assert two.message == (
        f"no {RACK} has room for all stages: r1 has it for 1 of 2 stages of 1 GPU; "
        f"a, b without the label {RACK} (placement.topologyKey)"
    )
    assert decision.rejection.reason == "InsufficientGPUs"


def test_where_no_node_has_the_label_there_is_no_domain() -> None:
    (decision,) = decide([in_rack("a", ""), in_rack("b", "")], big())
    assert decision.rejection is not None
    two = next(r for r in decision.rejection.rejected if "PP2" in r.option)
    assert two.reason == "NoMatchingNodes"
    assert two.message == (
        f"its stages must share a domain, and there is none; a, b without the label {RACK} "
        "(placement.topologyKey)"
    )


def test_room_for_one_stage_of_two_is_told() -> None:
    """Without domains too: the message once spoke of a volume that nobody has."""
    (decision,) = decide([in_rack("a", ""), in_rack("b", "")], big(placement={}), taken=("b",))
    assert decision.rejection is not None
    two = next(r for r in decision.rejection.rejected if "PP2" in r.option)
    assert (two.reason, two.message) == (
        "InsufficientGPUs",
        f"{two.option} has room for 1 of 2 stages of 1 GPU",
    )


def test_two_deployments_share_the_domains() -> None:
    """Counted together: neither is given the half of a domain that is left."""
    nodes = [in_rack(f"{rack}{i}", rack) for rack in ("r1", "r2") for i in range(3)]
    decisions = decide(nodes, big("a"), big("b"), big("c"))
    assert [places(one) for one in decisions] == [["r10", "r11"], ["r20", "r21"], []]


@pytest.mark.parametrize("gone", ["a", "b"])
def test_a_replica_that_lost_a_stage_is_placed_anew_in_one_domain(gone: str) -> None:
    nodes = [in_rack(name, "r1") for name in "ab"] + [in_rack(name, "r2") for name in "cd"]
    (before,) = decide(nodes, big())
    assert before.plan is not None
    assert places(before) == ["a", "b"]
    left = [node for node in nodes if node.name != gone]
    (after,) = decide(left, big(current=before.plan))
    assert places(after) == ["c", "d"]


@cache
def most(racks: tuple[tuple[int, ...], ...], stages: int) -> int:
    """Most replicas of `stages` single GPUs, each within a rack, by trying everything."""
    found = 0
    for index, nodes in enumerate(racks):
        if sum(nodes) >= stages:
            left, rest = stages, []
            for there in nodes:
                used = min(there, left)
                left -= used
                rest.append(there - used)
            after = tuple(sorted((*racks[:index], tuple(sorted(rest)), *racks[index + 1 :])))
            found = max(found, 1 + most(after, stages))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_as_many_replicas_are_placed_as_trying_everything_finds(
    racks: list[list[int]], replicas: int
) -> None:
    nodes, taken = [], []
    for rack, members in enumerate(racks):
        for index, free in enumerate(members):
            nodes.append(in_rack(f"r{rack}-{index}", f"r{rack}"))
            taken += [] if free else [nodes[-1].name]
    (decision,) = decide(nodes, big(replicas=replicas), taken=tuple(taken))
    placed = {place.replica for place in decision.placements}
    assert len(placed) == min(replicas, most(tuple(sorted(tuple(sorted(one)) for one in racks)), 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 6, 2), (8, 12, 2), (12, 30, 3)]), st.booleans())
def test_every_plan_keeps_to_its_domains(seed: int, size: tuple[int, int, int], mixed: bool) -> None:
    nodes, deployments, racks = size
    world = instance(seed, nodes, deployments, priorities=mixed, racks=racks)
    rack_of = {node.name: node.labels[RACK] for node in world.nodes}
    for decision in plan(world).values():
        by_replica: dict[int, set[str]] = {}
        for place in decision.placements:
            by_replica.setdefault(place.replica, set()).add(rack_of[place.node])
        assert all(len(found) == 1 for found in by_replica.values())


Free = dict[tuple[str, str, str], int]
"""GPUs by product, rack and node."""


def without(left: Free, where: tuple[str, str], size: int, count: int) -> Iterator[Free]:
    """All ways to take `count` stages there, as what is left."""
    if count == 0:
        yield left
        return
    for key, there in left.items():
        if key[:2] == where and there >= size:
            yield from without({**left, key: there - size}, where, size, count - 1)


def exhaustive(world: Snapshot) -> int:
    """The most weight, trying every choice for every deployment and every domain for every replica."""
    choices = Choices(world)
    racks = sorted({node.labels[RACK] for node in world.nodes})
    free = {
        (node.gpus[0].product, node.labels[RACK], node.name): node.gpus[0].total
        - sum(one.requests.extended.get("nvidia.com/gpu", 0) for one in world.pods if one.node == node.name)
        for node in world.nodes
    }

    def search(left: Free, index: int) -> int:
        if index == len(world.deployments):
            return 0
        asked = world.deployments[index]
        best = search(left, index + 1)
        worth = asked.priority * choices.cheapest_gpus(asked)
        for choice in choices.of(asked):
            for rack in racks:
                for after in without(left, (choice.product, rack), choice.tensor, choice.pipeline):
                    best = max(best, worth + search(after, index + 1))
        return best

    return search(free, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_oracle_with_domains_is_what_trying_everything_finds(seed: int) -> None:
    world = instance(seed, 4, 3, priorities=True, racks=2)
    single = [request_ for request_ in world.deployments if request_.spec.replicas == 1]
    world = Snapshot(world.nodes, world.pods, tuple(single), world.capabilities, world.prices)
    if not any(Choices(world).of(one) for one in single):
        return
    best = optimum(world, Choices(world))
    assert best.proven
    assert round(best.weight) == exhaustive(world)
