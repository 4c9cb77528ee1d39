"""How long a configuration that ran out of memory is left out, and that none is ever tried twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.cluster.test_failures import OUT_OF_MEMORY
from tests.unit.cluster.test_rollout import roll
from tests.unit.cluster.world import TERMS, World, facts, gpu_node

from plimsoll.actuate.ownership import Owner
from plimsoll.actuate.revisions import wanted_revision
from plimsoll.api.v1alpha1 import Exclusion, LLMDeploymentSpec
from plimsoll.cluster.exclusions import MAX_EXCLUSIONS, remembered
from plimsoll.planning.exclusions import MOST_CONFIGURATIONS

UPGRADED = replace(TERMS, worker_image="worker:2")
OTHER_BASES: dict[str, dict[str, Any]] = {
    "another engine": {"engine": {"image": "worker:mine"}},
    "another environment": {"podTemplate": {"env": [{"name": "PYTORCH_ALLOC_CONF", "value": "x"}]}},
    "another headroom": {"placement": {"memoryHeadroomPercent": 4}},
}
SAME_BASIS: dict[str, dict[str, Any]] = {
    "labels": {"podTemplate": {"labels": {"team": "a"}}},
    "draining": {"rollout": {"drainSeconds": 5}},
    "replicas": {"replicas": 2},
}


def tried(world: World) -> int:
    """Tokens a pass of the newest plan: what differs between the configurations of these tests."""
    return int(world.status("small")["plans"][-1]["maxBatchedTokens"])


def image(world: World) -> str:
    return str(world.worker_pods()[-1]["spec"]["containers"][0]["image"])


def run_out_of_memory(world: World) -> None:
    world.crash(world.worker_pods()[-1], OUT_OF_MEMORY, restarts=0)
    roll(world)


def without_the_first() -> tuple[World, int, int]:
    """A world that serves its second configuration because the first ran out of memory; both."""
    world = World(gpu_node("g1", 3))
    world.serve("small")
    first = tried(world)
    run_out_of_memory(world)
    assert tried(world) != first
    return world, first, tried(world)


def test_time_a_restart_and_a_new_operator_change_nothing() -> None:
    world, _, second = without_the_first()
    before = {name: pod["metadata"]["uid"] for name, pod in world.pods.items()}
    world.terms = UPGRADED
    for _ in range(3):
        world.restart()
        world.pass_time(days=100)
        world.settle()
    assert {name: pod["metadata"]["uid"] for name, pod in world.pods.items()} == before
    assert tried(world) == second


@pytest.mark.parametrize("change", SAME_BASIS.values(), ids=SAME_BASIS.keys())
def test_a_spec_that_changes_nothing_about_memory_does_not_bring_it_back(change: dict[str, Any]) -> None:
    world, _, second = without_the_first()
    world.edit("small", **change)
    roll(world)
    assert tried(world) == second
    assert "is left out" in world.condition("small", "Planned")["message"]


@pytest.mark.parametrize("change", OTHER_BASES.values(), ids=OTHER_BASES.keys())
def test_what_decides_about_memory_is_another_so_it_is_tried_again_and_never_twice(
    change: dict[str, Any],
) -> None:
    world, first, second = without_the_first()
    before = {key: world.resources["small"]["spec"].get(key) for key in change}
    world.edit("small", **change)
    roll(world)
    assert tried(world) == first
    assert "is left out" not in world.condition("small", "Planned")["message"]
    run_out_of_memory(world)
    again = tried(world)
    assert again != first
    assert len(world.status("small")["exclusions"]) == 2
    for key, value in before.items():
        if value is None:
            del world.resources["small"]["spec"][key]
    world.edit("small", **{key: value for key, value in before.items() if value is not None})
    roll(world)
    assert tried(world) == second, "people go back, and the first still does not fit there"
    world.edit("small", **change)
    roll(world)
    assert tried(world) == again


def test_another_model_revision_is_tried_again() -> None:
    world, first, _ = without_the_first()
    world.edit("small", model={"huggingFace": {"repo": "acme/small", "revision": "next"}})
    world.settle()
    world.end_inspection("small", facts(revision="beef").pack())
    roll(world)
    assert tried(world) == first


def test_out_of_memory_after_an_upgrade_of_the_operator_changes_the_plan_and_not_the_engine() -> None:
    world = World(gpu_node("g1", 3))
    world.serve("small")
    first = tried(world)
    world.terms = UPGRADED
    run_out_of_memory(world)
    assert (image(world), tried(world) == first) == ("worker:1", False)
    world.edit("small", workload={"maxConcurrentSequences": 4})
    roll(world)
    assert image(world) == "worker:2", "people changed something, so the new default counts"


def exclusion(number: int, basis: str) -> Exclusion:
    return Exclusion(configuration=f"c{number}", basis=basis, reason="CUDAOutOfMemory")


def test_what_is_left_out_now_is_remembered_before_what_was_and_before_nodes() -> None:
    spec = LLMDeploymentSpec.model_validate({"model": {"huggingFace": {"repo": "acme/small"}}})
    revision = wanted_revision(Owner("ns", "small", "uid"), spec, facts(), (), "worker:1")
    others = [exclusion(number, "other") for number in range(MAX_EXCLUSIONS)]
    node = Exclusion(node="g1", reason="Unschedulable")
    mine = [exclusion(number, revision.basis) for number in range(MAX_EXCLUSIONS - 2)]
    kept = remembered([*others, node, *mine], revision)
    assert kept == [others[-1], node, *mine]
    assert remembered(
        [*others, *kept, exclusion(98, revision.basis), exclusion(99, revision.basis)], revision
    ) == [
        *mine,
        exclusion(98, revision.basis),
        exclusion(99, revision.basis),
    ]


def test_after_as_many_as_status_remembers_nothing_more_is_tried() -> None:
    world, _, _ = without_the_first()
    resource = world.resources["small"]
    [known] = resource["status"]["exclusions"]
    resource["status"]["exclusions"] = [known] + [
        known | {"configuration": f"c{number}"} for number in range(MOST_CONFIGURATIONS - 1)
    ]
    before = set(world.pods)
    world.settle()
    rejected = world.condition("small", "Planned")
    assert (rejected["status"], rejected["reason"]) == ("False", "RanOutOfMemory")
    assert f"{MOST_CONFIGURATIONS} configurations ran out of memory" in rejected["message"]
    assert world.pods.keys() == before, "what serves goes on"
