"""New deployments are decided together, by counting slots; what was counted can be placed."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.instances import ENGINE, PRICES, instance
from tests.unit.planning.builders import H100, L4, WIDE, gpu_node, llama, places, pod, request, snapshot

from plimsoll.planning.assignment import Demand, Way, assign
from plimsoll.planning.eligibility import Eligibility
from plimsoll.planning.joint import options_together
from plimsoll.planning.placement import place_replicas
from plimsoll.planning.plan import plan, precedence, world_of

SIZES = (8, 4, 2, 1)


def slots(free: list[int]) -> list[int]:
    return [sum(there // size * size for there in free) for size in SIZES]


def one_way(size: int) -> tuple[Way, ...]:
    return (Way(cost=size, gpus=size, rows=tuple(row for row, s in enumerate(SIZES) if s <= size)),)


@cache
def packs(free: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether the sizes fit on the nodes, by trying everything."""
    if not sizes:
        return True
    first, *rest = sizes
    return any(
        packs(tuple(sorted((*free[:i], there - first, *free[i + 1 :]))), tuple(rest))
        for i, there in enumerate(free)
        if there >= first
    )


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.lists(st.sampled_from(SIZES), min_size=1, max_size=10),
)
def test_what_counting_admits_is_what_trying_everything_finds(free: list[int], sizes: list[int]) -> None:
    picks = assign([Demand(one_way(size), 1, 0) for size in sizes], slots(free))
    assert all(picks) is packs(tuple(sorted(free)), tuple(sorted(sizes, reverse=True)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 6), (8, 12), (8, 30)]), st.booleans())
def test_what_was_agreed_can_be_placed_in_any_order(seed: int, size: tuple[int, int], mixed: bool) -> None:
    nodes, deployments = size
    snap = instance(seed, nodes, deployments, priorities=mixed)
    ordered = sorted(snap.deployments, key=precedence)
    world = world_of(snap)
    eligibilities = {one.uid: Eligibility(one) for one in ordered}
    missing = {one.uid: one.spec.replicas for one in ordered}
    agreed = list(options_together(ordered, missing, eligibilities, world).items())
    random.Random(seed).shuffle(agreed)
    for uid, option in agreed:
        placed = place_replicas(option, range(missing[uid]), world.room)
        assert len(placed) == missing[uid] * option.config.pipeline_parallel


def test_the_first_leaves_small_gpus_to_whom_nothing_else_serves() -> None:
    """Alone, `first` would take the only L4, and `second` would find no place."""
    only_l4 = {"accelerators": {"products": ["L4"]}}
    first = request("first", facts=llama(2))
    second = request("second", facts=llama(2), placement=only_l4, created="2026-02-01T00:00:00Z")
    nodes = [gpu_node("h", gpus=1), gpu_node("l", L4, 1)]
    decisions = plan(snapshot(nodes, first, second))
    assert (places(decisions["uid-first"]), places(decisions["uid-second"])) == (["h"], ["l"])
    chosen = decisions["uid-first"].plan
    assert chosen is not None
    assert [(r.option, r.reason) for r in chosen.rejected] == [(f"BF16 TP1 on {L4}", "LeftToOthers")]


def test_priority_is_not_traded_for_number() -> None:
    """One urgent deployment over all GPUs comes before many that are not."""
    urgent = request("urgent", facts=llama(123, layers=88), priority=1)
    small = [request(f"s{index}", facts=llama(8)) for index in range(8)]
    decisions = plan(snapshot([gpu_node("h", gpus=4)], *small, urgent, capabilities=WIDE))
    assert decisions["uid-urgent"].plan is not None
    assert {uid for uid, one in decisions.items() if one.plan} == {"uid-urgent"}


def test_of_equal_priority_and_size_the_oldest_are_served() -> None:
    asked = [request(f"d{index}", created=f"2026-01-0{9 - index}T00:00:00Z") for index in range(5)]
    decisions = plan(snapshot([gpu_node("h", gpus=2)], *asked))
    assert {uid for uid, one in decisions.items() if one.plan} == {"uid-d4", "uid-d3"}


@pytest.mark.parametrize(("gpus", "old_is_served"), [(100, False), (1000, True)])
def test_age_decides_as_long_as_it_costs_less_than_a_hundredth(gpus: int, old_is_served: bool) -> None:
    """The old one counts for two GPUs, whose small kind is taken, and holds four of the others instead."""
    small, large = 0, 1
    old = Demand((Way(1, 2, (small,)), Way(10, 4, (large,))), 1, 0)
    young = Demand((Way(5, 1, (large,)),), 1, 0)
    picks = assign([old, *[young] * gpus], [0, gpus])
    assert (picks[0] is not None) is old_is_served
    assert sum(pick.way.gpus for pick in picks if pick) == gpus


def test_a_replica_that_died_comes_before_newcomers_of_lower_priority() -> None:
    made = plan(snapshot([gpu_node("h", gpus=2)], request("old", priority=5, replicas=2)))["uid-old"].plan
    assert made is not None
    standing = made.model_copy(update={"placements": made.placements[:1]})
    old = request("old", priority=5, replicas=2, current=standing)
    labels = {"plimsoll.dev/replica": "0", "plimsoll.dev/revision": "old-0000"}
    pods = [pod("old-0", "h", gpus=1, owner="uid-old", labels=labels)]
    decisions = plan(snapshot([gpu_node("h", gpus=2)], old, request("new"), request("newer"), pods=pods))
    assert places(decisions["uid-old"]) == ["h", "h"]
    assert decisions["uid-new"].plan is decisions["uid-newer"].plan is None


def test_stages_span_nodes_where_the_engine_runs_them() -> None:
    big = request(facts=llama(70, layers=80), workload={"maxConcurrentSequences": 2})
    nodes = [gpu_node("a", gpus=1), gpu_node("b", gpus=1), gpu_node("c", gpus=1)]
    decision = plan(snapshot(nodes, big, capabilities=ENGINE))[big.uid]
    assert decision.plan is not None
    assert (decision.plan.tensor_parallel, decision.plan.pipeline_parallel) == (1, 2)
    assert sum(decision.plan.stage_layers) == 80
    assert places(decision) == ["a", "b"]
    assert all(stage.total <= stage.line for stage in decision.plan.memory)


def test_one_node_is_preferred_to_several() -> None:
    big = request(facts=llama(70, layers=80), workload={"maxConcurrentSequences": 2})
    nodes = [gpu_node("a", gpus=1), gpu_node("b", gpus=1), gpu_node("c", gpus=1), gpu_node("d", gpus=4)]
    assert places(plan(snapshot(nodes, big, capabilities=ENGINE))[big.uid]) == ["d"]


def test_prices_decide_where_they_are_known() -> None:
    """Two L4 at 15 are less than one H100 at 80."""
    nodes = [gpu_node("h"), gpu_node("l", L4, 2)]
    asked = request(facts=llama(8))
    free_of_charge = plan(snapshot(nodes, asked, capabilities=WIDE))[asked.uid]
    assert places(free_of_charge) == ["h"]
    priced = snapshot(nodes, asked, capabilities=WIDE, prices={H100: PRICES[H100], L4: PRICES[L4]})
    assert places(plan(priced)[asked.uid]) == ["l"]
