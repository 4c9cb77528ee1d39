"""Large slots are kept whole while an odd GPU is free elsewhere."""

from __future__ import annotations

import pytest
from tests.unit.planning.builders import WIDE, decide_one, gpu_node, llama, places, pod, request

from plimsoll.planning.placement import newly_stranded, slot_loss


@pytest.mark.parametrize(
    ("free", "taken", "lost"),
    [
        (8, 1, (1, 1, 1)),
        (7, 1, (0, 0, 0)),
        (3, 1, (0, 0, 0)),
        (4, 2, (0, 1, 1)),
        (6, 2, (0, 0, 1)),
        (8, 8, (1, 2, 4)),
    ],
)
def test_slot_loss_counts_what_can_no_longer_be_placed(free: int, taken: int, lost: tuple[int, ...]) -> None:
    assert slot_loss(free, taken) == lost


def test_one_gpu_goes_where_an_odd_one_is_left() -> None:
    nodes = [gpu_node("a"), gpu_node("b"), gpu_node("c")]
    pods = [pod("x", "b", gpus=3), pod("y", "c", gpus=4)]
    assert places(decide_one(nodes, request(), pods=pods)) == ["b"]


def test_of_equal_losses_the_fullest_node_is_taken_then_the_first_by_name() -> None:
    nodes = [gpu_node("c"), gpu_node("b"), gpu_node("a")]
    pods = [pod("x", "a", gpus=1), pod("y", "b", gpus=3), pod("z", "c", gpus=3)]
    assert places(decide_one(nodes, request(), pods=pods)) == ["b"]


def test_a_pair_takes_the_pair_that_is_left() -> None:
    nodes = [gpu_node("a"), gpu_node("b")]
    big = llama(40, layers=60)
    decision = decide_one(nodes, request(facts=big), pods=[pod("x", "b", gpus=6)], capabilities=WIDE)
    assert decision.plan is not None
    assert decision.plan.tensor_parallel == 2
    assert places(decision) == ["b"]


@pytest.mark.parametrize(
    ("free", "cpu", "gpus", "millis", "quarters"),
    [
        (8, 48_000, 1, 6_000, 0),
        (8, 48_000, 1, 12_000, 4),
        (8, 96_000, 1, 12_000, 0),
        (8, 24_000, 1, 1_500, 0),
        (2, 12_000, 1, 9_000, 2),
    ],
    ids=[
        "its own share",
        "a second GPU's share",
        "cores to spare",
        "cores short before",
        "half a share more",
    ],
)
def test_a_gpu_without_cores_beside_it_counts_as_lost(
    free: int, cpu: int, gpus: int, millis: int, quarters: int
) -> None:
    assert newly_stranded(free, cpu, gpus, millis) == quarters


def test_a_pod_of_many_cores_rather_breaks_a_slot_than_strands_a_gpu() -> None:
    nodes = [gpu_node("a", cpu="12", gpus=2), gpu_node("b", cpu="96", gpus=8)]
    cores = {"resources": {"cpu": "12"}}
    assert places(decide_one(nodes, request(podTemplate=cores))) == ["b"]
    assert places(decide_one(nodes, request())) == ["a"]


def test_of_equal_nodes_a_pod_of_many_cores_goes_where_it_strands_no_gpu() -> None:
    nodes = [gpu_node("a", cpu="48"), gpu_node("b", cpu="64")]
    cores = {"resources": {"cpu": "12"}}
    assert places(decide_one(nodes, request(podTemplate=cores))) == ["b"]
    assert places(decide_one(nodes, request())) == ["a"]
