"""What is best of all that fits: objectives, targets of latency, cuts that were asked for, and the workload's
mean."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.planning.builders import H100, L4, decide_one, gpu_node, llama, places, pod, request, snapshot
from tests.unit.planning.test_precisions import FULL, planned, refused

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.planning.plan import plan
from plimsoll_worker.launch import Capabilities

FLOOR = {"floor": "INT4", "kvCache": "Auto"}
BOTH = [gpu_node("h", H100, 8), gpu_node("l", L4, 8)]
UNSPANNED = FULL.model_copy(update={"multi_node": False})


def chosen(objective: str, **fields: Any) -> PlanStatus:
    return planned(BOTH, llama(14, layers=40), workload={"objective": objective}, **fields)


class TestObjectives:
    def test_fewest_gpus_takes_one_gpu_in_the_highest_precision_that_fits_one(self) -> None:
        taken = chosen("FewestGPUs", quantization=FLOOR)
        assert (taken.product, taken.tensor_parallel, taken.weights) == (H100, 1, "BF16")

    def test_quality_takes_more_gpus_before_it_rounds(self) -> None:
        large, floor = llama(70, layers=80), {"floor": "INT4"}
        nodes = [gpu_node("h", H100, 8)]
        cheap = planned(nodes, large, quantization=floor)
        good = planned(nodes, large, quantization=floor, workload={"objective": "Quality"})
        assert (cheap.weights, cheap.tensor_parallel) == ("INT4", 1)
        assert (good.weights, good.tensor_parallel) == ("BF16", 4)

    def test_quality_rounds_where_nothing_better_has_room(self) -> None:
        taken = [pod("stranger", "h", gpus=6)]
        asked = request(
            facts=llama(72, layers=80), quantization={"floor": "INT4"}, workload={"objective": "Quality"}
        )
        decision = decide_one([gpu_node("h", H100, 8)], asked, pods=taken, capabilities=FULL)
        assert decision.plan is not None
        assert (decision.plan.weights, decision.plan.tensor_parallel) == ("INT8", 2)
        assert next(option.reason for option in decision.plan.rejected) == "InsufficientGPUs"

    def test_latency_takes_the_plan_with_the_least_time_per_output_token(self) -> None:
        fast = chosen("Latency")
        assert (fast.product, fast.tensor_parallel) == (H100, 8)
        assert _step(fast) < _step(chosen("FewestGPUs"))
        assert _step(chosen("Latency", quantization=FLOOR)) < _step(fast)

    def test_throughput_takes_the_plan_with_the_most_tokens_for_each_gpu(self) -> None:
        per_gpu = {
            objective: _per_gpu(chosen(objective, quantization=FLOOR))
            for objective in ("FewestGPUs", "Quality", "Latency", "Throughput")
        }
        assert max(per_gpu, key=lambda objective: per_gpu[objective]) == "Throughput"
        assert per_gpu["Throughput"] > per_gpu["FewestGPUs"]

    def test_without_a_known_speed_an_objective_of_time_is_the_cheapest(self) -> None:
        nodes = [gpu_node("x", H100, 8, labels={"nvidia.com/gpu.product": "NVIDIA-Z900"})]
        taken = planned(nodes, llama(14, layers=40), workload={"objective": "Latency"})
        assert (taken.tensor_parallel, taken.predicted) == (1, None)

    def test_deployments_of_different_objectives_are_planned_together(self) -> None:
        asked = [
            request(name, facts=llama(14, layers=40), workload={"objective": name.capitalize()})
            for name in ("latency", "throughput", "quality")
        ]
        decisions = plan(snapshot(BOTH, *asked, capabilities=FULL))
        assert all(decisions[one.uid].plan is not None for one in asked)


def _step(taken: PlanStatus) -> int:
    assert taken.predicted is not None
    return taken.predicted.time_per_output_token_microseconds


def _per_gpu(taken: PlanStatus) -> float:
    assert taken.predicted is not None
    return taken.predicted.tokens_per_second / (taken.tensor_parallel * taken.pipeline_parallel)


class TestTargets:
    def test_more_gpus_are_taken_until_the_target_is_kept(self) -> None:
        slow = planned(BOTH[:1], llama(14, layers=40))
        target = _step(slow) // 1000 - 2
        fast = planned(BOTH[:1], llama(14, layers=40), workload=_targets(step=target))
        assert _step(slow) > target * 1000 >= _step(fast)
        assert fast.tensor_parallel > slow.tensor_parallel
        missed = fast.rejected[0]
        assert (missed.option, missed.reason) == (f"BF16 TP1 on {H100}", "TargetMissed")

    def test_a_faster_gpu_is_taken(self) -> None:
        slow, small = planned(BOTH, llama(1, layers=16)), llama(1, layers=16)
        assert slow.product == "NVIDIA-L4"
        fast = planned(BOTH, small, workload=_targets(step=_step(slow) // 1000))
        assert _step(fast) < _step(slow)

    def test_what_is_missed_is_told_with_the_batch_that_would_keep_it(self) -> None:
        single = [gpu_node("l", L4, 1)]
        workload = {"maxContextTokens": 2048, "maxConcurrentSequences": 8, **_targets(step=60)}
        rejection = refused(single, llama(8), workload=workload)
        assert rejection.reason == "TargetMissed"
        assert "predicted time per output token" in rejection.message
        assert "workload.targets.timePerOutputTokenMilliseconds is 60" in rejection.message

    @pytest.mark.parametrize("sequences", [64])
    def test_the_batch_that_is_proposed_really_keeps_the_target(self, sequences: int) -> None:
        single = [gpu_node("h", H100, 1)]
        slow = planned(single, llama(8), workload=_small(sequences))
        target = _targets(step=_step(slow) // 1000 - 1)
        message = refused(single, llama(8), workload={**_small(sequences), **target}).message
        words = message.replace(";", "").split()
        most = int(words[words.index("workload.maxConcurrentSequences:") + 1])
        assert 0 < most < sequences
        assert planned(single, llama(8), workload={**_small(most), **target}).product == H100
        assert refused(single, llama(8), workload={**_small(most + 1), **target}).reason == "TargetMissed"

    def test_a_target_that_not_even_one_sequence_keeps_is_told_as_such(self) -> None:
        message = refused([gpu_node("l", L4, 1)], llama(8), workload=_targets(step=1) | _small(1)).message
        assert "misses it even for one sequence" in message

    def test_time_to_first_token_picks_a_larger_chunk(self) -> None:
        long = {"maxContextTokens": 32768, "maxConcurrentSequences": 4}
        usual = planned([gpu_node("h", H100, 1)], llama(8), workload=long)
        assert usual.predicted is not None
        assert usual.max_batched_tokens == 2048
        target = usual.predicted.time_to_first_token_microseconds // 1000 - 1
        quick = planned([gpu_node("h", H100, 1)], llama(8), workload={**long, **_targets(first=target)})
        assert quick.predicted is not None
        assert quick.predicted.time_to_first_token_microseconds <= target * 1000
        assert quick.max_batched_tokens > usual.max_batched_tokens

    def test_a_chunk_that_was_asked_for_stays(self) -> None:
        asked = {"maxBatchedTokens": 256, **_small(4), **_targets(step=1000)}
        assert planned([gpu_node("h", H100, 1)], llama(8), workload=asked).max_batched_tokens == 256

    def test_a_gpu_of_unknown_speed_cannot_be_held_against_a_target(self) -> None:
        nodes = [gpu_node("x", H100, 8, labels={"nvidia.com/gpu.product": "NVIDIA-Z900"})]
        rejection = refused(nodes, llama(8), workload=_targets(step=1000))
        assert (rejection.reason, "NVIDIA-Z900" in rejection.message) == ("SpeedUnknown", True)

    def test_a_prediction_changes_no_plan_id(self) -> None:
        nodes = [gpu_node("h", H100, 1)]
        plain, watched = (
            planned(nodes, llama(8), workload={"maxBatchedTokens": 512, **targets})
            for targets in ({}, _targets(step=60_000))
        )
        assert plain.id == watched.id


def _targets(*, step: int | None = None, first: int | None = None) -> dict[str, Any]:
    asked = {"timePerOutputTokenMilliseconds": step, "timeToFirstTokenMilliseconds": first}
    return {"targets": {name: value for name, value in asked.items() if value is not None}}


def _small(sequences: int) -> dict[str, int]:
    return {"maxContextTokens": 1024, "maxConcurrentSequences": sequences}


class TestTokenBudget:
    def test_a_smaller_chunk_is_planned_where_it_makes_the_model_fit(self) -> None:
        nodes = [gpu_node("l", L4, 1)]
        contexts = range(4096, 6144, 64)
        budgets = {
            found.plan.max_batched_tokens
            for context in contexts
            if (found := decide_one(nodes, request(workload={"maxContextTokens": context}))).plan is not None
        }
        assert 2048 in budgets
        assert len(budgets) > 1


class TestMeanContext:
    def test_it_sizes_the_cache_and_status_tells(self) -> None:
        nodes = [gpu_node("h", H100, 1)]
        full = planned(nodes, llama(8))
        mean = planned(nodes, llama(8), workload={"meanContextTokens": 1024})
        assert full.kv_cache_tokens == 8 * 8192
        assert mean.kv_cache_tokens == 8 * 1024
        assert mean.max_context_tokens == 8192
        assert 8 * mean.kv_cache_bytes == full.kv_cache_bytes

    def test_one_sequence_of_full_length_always_fits(self) -> None:
        asked = {"meanContextTokens": 16, "maxConcurrentSequences": 2}
        assert planned([gpu_node("h", H100, 1)], llama(8), workload=asked).kv_cache_tokens == 8192


class TestParallelism:
    @pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (8, 1), (1, 4), (2, 2)])
    def test_a_cut_that_was_asked_for_is_the_one_that_is_planned(self, tensor: int, pipeline: int) -> None:
        asked = {"tensor": tensor, "pipeline": pipeline}
        taken = planned([gpu_node("h", H100, 8)], llama(8), parallelism=asked)
        assert (taken.tensor_parallel, taken.pipeline_parallel) == (tensor, pipeline)

    def test_half_of_a_cut_may_be_left_to_the_planner(self) -> None:
        taken = planned([gpu_node("h", H100, 8)], llama(72, layers=80), parallelism={"pipeline": 2})
        assert (taken.tensor_parallel, taken.pipeline_parallel) == (2, 2)

    @pytest.mark.parametrize(
        ("asked", "reason", "told"),
        [
            ({"tensor": 3}, "NotDivisible", "32 attention heads do not divide by tensor parallel 3"),
            ({"pipeline": 40}, "NotDivisible", "40 pipeline stages for 32 layers"),
            (
                {"tensor": 16},
                "InsufficientGPUs",
                "16 GPUs of one kind on one node, the widest usable node has 8",
            ),
        ],
    )
    def test_a_cut_that_is_not_possible_is_refused_with_the_numbers(
        self, asked: dict[str, int], reason: str, told: str
    ) -> None:
        facts = llama(8, intermediate=14336)
        rejection = refused([gpu_node("h", H100, 8)], facts, parallelism=asked)
        assert rejection.reason == reason
        assert told in rejection.message

    def test_a_cut_that_the_engine_does_not_run_is_told_with_what_would_fit(self) -> None:
        single = FULL.model_copy(update={"max_pipeline_parallel": 1})
        rejection = refused([gpu_node("h", H100, 8)], llama(8), single, parallelism={"pipeline": 2})
        assert rejection.reason == "EngineUnsupported"
        assert "runs pipeline parallel 1" in rejection.message

    def test_an_int4_group_is_never_cut(self) -> None:
        asked: dict[str, Any] = {"parallelism": {"tensor": 8}, "quantization": {"weights": "INT4"}}
        rejection = refused([gpu_node("h", H100, 8)], llama(8), **asked)
        assert rejection.reason == "NotDivisible"
        assert "INT4 keeps a scale for 128 columns" in rejection.message


class TestStagesOnOneNode:
    """parallelism.multiNode: Never, and engines whose stages cannot talk over a network."""

    PAIRS = tuple(gpu_node(name, H100, 2) for name in ("a", "b", "c"))

    def test_stages_may_span_nodes_unless_told_otherwise(self) -> None:
        taken = planned(list(self.PAIRS), llama(72, layers=80))
        assert (taken.tensor_parallel, taken.pipeline_parallel) == (1, 3)
        assert len({placement.node for placement in taken.placements}) == 2

    @pytest.mark.parametrize(
        ("engine", "parallelism"), [(FULL, {"multiNode": "Never"}), (UNSPANNED, {})], ids=["asked", "engine"]
    )
    def test_a_replica_that_would_span_nodes_is_refused(
        self, engine: Capabilities, parallelism: dict[str, str]
    ) -> None:
        asked = request(facts=llama(72, layers=80), parallelism=parallelism)
        decision = decide_one(list(self.PAIRS), asked, capabilities=engine)
        assert decision.plan is None
        assert decision.rejection is not None
        assert decision.rejection.reason == "InsufficientMemory"

    @pytest.mark.parametrize("free", [4, 3])
    def test_all_stages_go_to_one_node_that_holds_them(self, free: int) -> None:
        nodes = [gpu_node("a", H100, 8), gpu_node("b", H100, 8)]
        taken = [pod("p", "a", gpus=8 - free), pod("q", "b", gpus=3)]
        asked = request(facts=llama(8), parallelism={"pipeline": 4, "multiNode": "Never"})
        decision = decide_one(nodes, asked, pods=taken, capabilities=FULL)
        assert places(decision) == ["a" if free == 4 else "b"] * 4

    def test_every_replica_is_whole(self) -> None:
        nodes = [gpu_node("a", H100, 4), gpu_node("b", H100, 4)]
        asked = request(
            facts=llama(8), replicas=3, parallelism={"tensor": 1, "pipeline": 3, "multiNode": "Never"}
        )
        decision = decide_one(nodes, asked, capabilities=FULL)
        assert decision.plan is not None
        assert places(decision) == ["a"] * 3 + ["b"] * 3
        assert decision.unplaced_replicas == (2,)
        assert decision.rejection is not None
        assert "needs 3 free GPUs on one node" in decision.rejection.message
