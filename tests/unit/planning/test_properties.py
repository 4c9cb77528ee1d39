"""What must hold for every cluster: nothing over-booked, nothing moved without need, equal plans for equal
input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.planning.builders import H100, L4, T4, gpu_node, llama, node, pod, request, snapshot
from tests.unit.planning.test_precisions import FULL

from plimsoll.inventory.capacity import free_by_node, shortages
from plimsoll.inventory.views import PodView
from plimsoll.planning.formats import formats, formats_of
from plimsoll.planning.plan import plan, worker_requests
from plimsoll.planning.snapshot import Decisions, Snapshot

MODELS = {
    size: llama(size, layers=layers) for size, layers in ((1, 16), (2, 16), (8, 32), (30, 48), (70, 80))
}
BOUNDED = settings(max_examples=60, deadline=None)


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """Up to five nodes, some of them tight or closed, strangers' pods, up to four deployments."""
    nodes = [
        gpu_node(
            f"n{index}",
            draw(st.sampled_from([H100, L4, T4])),
            draw(st.integers(1, 8)),
            cpu=draw(st.sampled_from(["3", "96"])),
            cordoned=draw(st.integers(0, 9)) == 0,
            ready=draw(st.integers(0, 9)) != 0,
        )
        for index in range(draw(st.integers(0, 4)))
    ] + [node("c", memory=draw(st.sampled_from(["4Gi", "40Gi"])))]
    pods = [
        pod(
            f"p{index}",
            draw(st.sampled_from(nodes)).name,
            gpus=draw(st.integers(0, 4)),
            bound=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 4)))
    ]
    deployments = [
        request(
            f"d{index}",
            facts=MODELS[draw(st.sampled_from(sorted(MODELS)))],
            priority=draw(st.integers(0, 1)),
            replicas=draw(st.integers(0, 4)),
            suspend=draw(st.integers(0, 9)) == 0,
            **draw(st.one_of(st.just({"placement": {"device": "CPU"}}), *[wishes()] * 3)),
        )
        for index in range(draw(st.integers(1, 4)))
    ]
    return snapshot(nodes, *deployments, pods=pods, capabilities=FULL)


@st.composite
def wishes(draw: st.DrawFn) -> dict[str, Any]:
    """What a spec for GPUs may say of precision, cut and speed; half of them say nothing."""
    if draw(st.booleans()):
        return {}
    step = draw(st.sampled_from([None, 5, 50]))
    return {
        "quantization": {
            "floor": draw(st.sampled_from(["Native", "INT8", "INT4"])),
            "kvCache": draw(st.sampled_from(["Native", "Auto", "FP8"])),
        },
        "parallelism": {
            "tensor": draw(st.sampled_from([None, None, 2])),
            "pipeline": draw(st.sampled_from([None, None, 1, 3])),
            "multiNode": draw(st.sampled_from(["IfNeeded", "Never"])),
        },
        "workload": {
            "objective": draw(st.sampled_from(["FewestGPUs", "Quality", "Latency", "Throughput"])),
            "meanContextTokens": draw(st.sampled_from([None, 512])),
            "targets": {"timePerOutputTokenMilliseconds": step},
        },
    }


def workers(world: Snapshot, decisions: Decisions) -> list[PodView]:
    """The pods that the decisions lead to, bound."""
    made: list[PodView] = []
    for asked in world.deployments:
        decided = decisions[asked.uid].plan
        if decided is None or asked.spec.suspend:
            continue
        for place in decided.placements:
            labels = {
                "plimsoll.dev/replica": str(place.replica),
                "plimsoll.dev/stage": str(place.stage),
                "plimsoll.dev/revision": asked.revision,
            }
            name = f"{asked.name}-{place.replica}-{place.stage}"
            made.append(
                replace(
                    pod(name, place.node, owner=asked.uid, labels=labels),
                    requests=worker_requests(decided, asked.spec, asked.facts),
                )
            )
    return made


def carried_out(world: Snapshot, decisions: Decisions) -> Snapshot:
    """The world after the decisions were carried out."""
    deployments = tuple(replace(asked, current=decisions[asked.uid].plan) for asked in world.deployments)
    return replace(world, pods=(*world.pods, *workers(world, decisions)), deployments=deployments)


@BOUNDED
@given(worlds())
def test_no_node_is_over_booked(world: Snapshot) -> None:
    """Counted one pod after the other, as the scheduler will."""
    pods = list(world.pods)
    for made in workers(world, plan(world)):
        assert shortages(made.requests, free_by_node(world.nodes, pods)[made.node]) == ()
        pods.append(made)


@BOUNDED
@given(worlds())
def test_every_replica_is_placed_or_its_absence_explained(world: Snapshot) -> None:
    for asked in world.deployments:
        decision = plan(world)[asked.uid]
        placed = {place.replica for place in decision.placements}
        assert placed.isdisjoint(decision.unplaced_replicas)
        assert len(placed) + len(decision.unplaced_replicas) == asked.spec.replicas
        assert bool(decision.unplaced_replicas) <= bool(decision.rejection and decision.rejection.message)


@BOUNDED
@given(worlds())
def test_a_plan_is_what_the_spec_allows(world: Snapshot) -> None:
    for asked in world.deployments:
        decided, cut = plan(world)[asked.uid].plan, asked.spec.parallelism
        if decided is None:
            continue
        assert formats_of(decided) in formats(asked.spec, asked.facts)
        assert cut.tensor in (None, decided.tensor_parallel)
        assert cut.pipeline in (None, decided.pipeline_parallel)
        for replica in {place.replica for place in decided.placements}:
            stages = [place for place in decided.placements if place.replica == replica]
            assert len(stages) == decided.pipeline_parallel
            assert cut.multi_node == "IfNeeded" or len({place.node for place in stages}) == 1
        target = asked.spec.workload.targets.time_per_output_token_milliseconds
        if target is not None:
            assert decided.predicted is not None
            assert decided.predicted.time_per_output_token_microseconds <= target * 1000


@BOUNDED
@given(worlds())
def test_every_stage_stays_under_its_line(world: Snapshot) -> None:
    for decision in plan(world).values():
        for stage in decision.plan.memory if decision.plan else ():
            assert stage.total <= stage.line


@BOUNDED
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_seen_does_not_matter(world: Snapshot, random: object) -> None:
    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        mixed = list(items)
        random.shuffle(mixed)  # type: ignore[attr-defined]
        return tuple(mixed)

    mixed = Snapshot(
        shuffled(world.nodes),  # type: ignore[arg-type]
        shuffled(world.pods),  # type: ignore[arg-type]
        shuffled(world.deployments),  # type: ignore[arg-type]
        world.capabilities,
    )
    assert dict(plan(mixed)) == dict(plan(world))


@BOUNDED
@given(worlds())
def test_a_plan_that_was_carried_out_is_made_again(world: Snapshot) -> None:
    decisions = plan(world)
    again = plan(carried_out(world, decisions))
    for uid, decision in decisions.items():
        assert again[uid].plan == decision.plan or decision.rejection is not None
        assert set(again[uid].placements) >= set(decision.placements) if decision.plan else True


@BOUNDED
@given(worlds(), st.integers(0, 8), st.data())
def test_a_strangers_pod_moves_nothing(world: Snapshot, gpus: int, data: st.DataObject) -> None:
    decisions = plan(world)
    settled = carried_out(world, decisions)
    where = data.draw(st.sampled_from([seen.name for seen in world.nodes]))
    disturbed = replace(settled, pods=(*settled.pods, pod("stranger", where, gpus=gpus)))
    after = plan(disturbed)
    for asked in world.deployments:
        before = decisions[asked.uid]
        if before.plan is not None and not asked.spec.suspend:
            kept = {(place.replica, place.node) for place in after[asked.uid].placements}
            assert {(place.replica, place.node) for place in before.placements} <= kept
