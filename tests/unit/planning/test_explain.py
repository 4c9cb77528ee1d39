"""A plan told again: the terms add up to the plan's own bytes, measured bytes stand beside them, pictures
count GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.planning.builders import L4, WIDE, decide_one, gpu_node, llama, node, pod, request, spec

from plimsoll.api.v1alpha1 import MeasuredStage, PlanStatus
from plimsoll.planning.explain import bars, pictures, reasons, stage_sums
from plimsoll_worker.launch import Device, MeasuredMemory, Precision


def planned(**fields: object) -> PlanStatus:
    found = decide_one([gpu_node("h"), node("n")], request(**fields)).plan  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_terms_of_every_category_add_up_to_the_prediction() -> None:
    chosen = planned()
    (stage,) = stage_sums(chosen, spec(), llama())
    for category in stage.categories:
        assert sum(term.bytes for term in category.terms) == category.predicted
    assert sum(category.predicted for category in stage.categories) == stage.total == chosen.memory[0].total
    assert stage.spare == chosen.memory[0].line - stage.total


def test_without_facts_the_bytes_are_told_and_the_formulas_are_not() -> None:
    (stage,) = stage_sums(planned(), spec())
    assert all(category.terms == () for category in stage.categories)
    assert stage.categories[0].predicted > 0


def test_measured_bytes_stand_beside_the_predicted() -> None:
    chosen = planned()
    seen = MeasuredMemory(**chosen.memory[0].predicted.model_dump() | {"weights": 1000}, unattributed=77)
    measured = MeasuredStage(
        stage=0,
        bytes=seen,
        kv_cache_tokens=chosen.kv_cache_tokens,
        device=Device.GPU,
        weights=chosen.weights,
        tensor_parallel=1,
        pipeline_parallel=1,
        error_permille=5,
    )
    (stage,) = stage_sums(chosen, spec(), llama(), [measured])
    by_name = {category.category: category.measured for category in stage.categories}
    assert by_name["weights"] == 1000
    assert by_name["unattributed"] == 77
    assert stage.measured_total == seen.total


def test_the_reasons_say_precision_cache_and_gpu() -> None:
    weights, cache, _speed, gpu = reasons(planned(), spec())
    assert "BF16" in weights
    assert "65536 tokens: 8 sequences of 8192" in cache
    assert "1 GPU of NVIDIA-H100-80GB-HBM3 a replica" in gpu


def test_the_reasons_on_cpu_speak_of_the_container() -> None:
    cpu = {"device": "CPU"}
    *_, container = reasons(planned(placement=cpu, facts=llama(1)), spec(placement=cpu))
    assert "the container asks for" in container


def test_a_picture_counts_taken_planned_and_free() -> None:
    chosen = planned()
    drawn = {
        picture.node: picture.drawn
        for picture in pictures([gpu_node("l", L4, 4), gpu_node("h")], [pod("x", "h", gpus=3)], chosen)
    }
    assert drawn == {"h": "###P....", "l": "...."}


def test_a_picture_marks_what_is_free_and_out_of_the_question_and_says_why() -> None:
    nodes = [
        gpu_node("cordoned", cordoned=True),
        gpu_node("h", gpus=2),
        gpu_node("small", L4, 2),
        gpu_node("sliced", gpus=2, labels={"nvidia.com/gpu.sharing-strategy": "time-slicing"}),
    ]
    asked = request(placement={"accelerators": {"products": ["H100"]}})
    found = {
        one.node: one for one in pictures(nodes, [pod("x", "cordoned", gpus=3)], None, barred=bars(asked))
    }
    assert {name: one.drawn for name, one in found.items()} == {
        "cordoned": "###xxxxx",
        "h": "..",
        "small": "xx",
        "sliced": "xx",
    }
    assert found["cordoned"].barred == "is cordoned"
    assert "placement.accelerators.products asks for H100" in found["small"].barred
    assert "sharing" in found["sliced"].barred


@pytest.mark.parametrize(
    ("fields", "alone"),
    [
        ({"facts": llama(70, layers=80)}, True),
        ({"facts": llama(8), "parallelism": {"tensor": 2}}, False),
        ({"facts": llama(8), "workload": {"objective": "Latency"}}, False),
    ],
    ids=["the fewest that hold it", "asked for", "for speed"],
)
def test_fewer_gpus_would_not_hold_it_is_said_only_where_that_is_why(
    fields: dict[str, Any], alone: bool
) -> None:
    asked = request(**fields)
    decision = decide_one([gpu_node("h")], asked, capabilities=WIDE)
    assert decision.plan is not None
    told = reasons(decision.plan, asked.spec)[-1]
    assert ("would not hold it" in told) is alone


def test_the_reasons_tell_times_with_their_basis_and_the_chunk() -> None:
    _, _, speed, _ = reasons(planned(), spec())
    assert "8 sequences of 8192 tokens are predicted" in speed
    assert "by the GPU's datasheet" in speed
    assert "2048 tokens at a time" in speed


def test_the_reasons_tell_what_is_rounded_and_what_the_mean_is() -> None:
    fields = {"quantization": {"weights": "INT8"}, "workload": {"meanContextTokens": 1024}}
    asked = request(facts=llama(8), **fields)
    engine = WIDE.model_copy(update={"weights": {Device.GPU: (Precision.BF16, Precision.INT8)}})
    decision = decide_one([gpu_node("h")], asked, capabilities=engine)
    assert decision.plan is not None
    weights, cache, *_ = reasons(decision.plan, asked.spec)
    assert "kept in INT8, what is not quantized in BF16, as spec.quantization allows" in weights
    assert "8192 tokens: 8 sequences of 1024 in the mean, up to 8192 each" in cache


def test_the_plans_own_pods_are_not_counted_twice() -> None:
    own = pod("mine", "h", gpus=1, owner="uid-a")
    (picture,) = pictures([gpu_node("h")], [own], planned(), "uid-a")
    assert picture.drawn == "P......."


def test_a_plan_of_an_older_version_keeps_its_bytes_and_the_difference_shows() -> None:
    chosen = planned()
    older = chosen.memory[0].predicted.model_copy(update={"runtime": 1000})
    stale = chosen.model_copy(update={"memory": [chosen.memory[0].model_copy(update={"predicted": older})]})
    (stage,) = stage_sums(stale, spec(), llama())
    (runtime,) = [category for category in stage.categories if category.category == "runtime"]
    assert (runtime.predicted, runtime.recomputed) == (1000, chosen.memory[0].predicted.runtime)
