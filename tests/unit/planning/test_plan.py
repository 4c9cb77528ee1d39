"""What is chosen, and in what words the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.planning.builders import (
    GIB,
    GPU,
    GPU_TAINT,
    H100,
    L4,
    MIB,
    ONE_CARD,
    T4,
    WIDE,
    decide_one,
    gpu_node,
    llama,
    node,
    places,
    pod,
    request,
    snapshot,
    spec,
)

from plimsoll.inventory.views import NodeView, PodView, VolumeView
from plimsoll.model.facts import ModelFacts
from plimsoll.planning.plan import plan, worker_requests
from plimsoll.planning.snapshot import Decision, Rejection
from plimsoll.sizing.runtime import line
from plimsoll_worker.launch import Capabilities

CPU = {"device": "CPU"}


def refused(decision: Decision) -> Rejection:
    assert decision.rejection is not None
    return decision.rejection


def volume(*modes: str, **fields: Any) -> VolumeView:
    return VolumeView("default", "models", **{"bound": True, "access_modes": modes, **fields})


def test_the_smallest_gpu_that_holds_the_model_is_taken() -> None:
    nodes = [gpu_node("h"), gpu_node("l", L4, 4)]
    assert places(decide_one(nodes, request(facts=llama(2)))) == ["l"]
    assert places(decide_one(nodes, request(facts=llama(8)))) == ["h"]


def test_a_plan_tells_everything_a_worker_needs() -> None:
    decision = decide_one([gpu_node("h")], request(facts=llama(8)))
    chosen = decision.plan
    assert chosen is not None
    assert decision.rejection is None
    assert chosen.summary == f"BF16 TP1xPP1, 1 GPU on 1 node ({H100})"
    assert (chosen.product, chosen.resource_name, chosen.weights) == (H100, GPU, "BF16")
    assert (chosen.max_context_tokens, chosen.kv_cache_tokens, chosen.max_batched_tokens) == (
        8192,
        65536,
        2048,
    )
    assert chosen.stage_layers == [32]
    (stage,) = chosen.memory
    assert stage.line == line(81559 * MIB, 3)
    assert stage.total == stage.predicted.total <= stage.line
    assert chosen.kv_cache_bytes == stage.predicted.kv_cache == 65536 * 32 * 8 * 256 * 2
    assert [p.to_dict() for p in chosen.placements] == [{"replica": 0, "stage": 0, "node": "h", "gpus": 1}]
    assert chosen.revision == "a-0000"


def test_on_cpu_the_line_is_the_containers_limit_less_the_headroom() -> None:
    decision = decide_one([node("n")], request(placement=CPU, facts=llama(1)))
    chosen = decision.plan
    assert chosen is not None
    assert chosen.summary == "FP32 TP1xPP1 on CPU of n"
    assert (chosen.weights, chosen.product, chosen.resource_name) == ("FP32", "", "")
    assert chosen.memory[0].line == line(chosen.host_memory_bytes, 3) >= chosen.memory[0].total
    assert chosen.placements[0].gpus == 0


def test_cpu_is_never_taken_unasked() -> None:
    assert decide_one([node("n")], request(facts=llama(0.5))).plan is None


def test_cpu_workers_leave_gpu_nodes_alone_while_others_have_room() -> None:
    nodes = [gpu_node("a", taints=[], memory="64Gi"), node("b", memory="128Gi")]
    assert places(decide_one(nodes, request(placement=CPU, facts=llama(1)))) == ["b"]
    assert places(decide_one(nodes[:1], request(placement=CPU, facts=llama(1)))) == ["a"]


def test_on_cpu_the_node_with_least_memory_to_spare_is_taken() -> None:
    nodes = [node("a", memory="256Gi"), node("b", memory="64Gi"), node("c", memory="4Gi")]
    assert places(decide_one(nodes, request(placement=CPU, facts=llama(1)))) == ["b"]


def test_context_defaults_to_8192_or_the_models_own_limit() -> None:
    def context(facts: ModelFacts, **workload: int) -> int:
        found = decide_one([gpu_node("h")], request(facts=facts, workload=workload)).plan
        assert found is not None
        return found.max_context_tokens

    assert context(llama(2)) == 8192
    assert context(llama(2, max_position=2048)) == 2048
    assert context(llama(2), maxContextTokens=20000) == 20000


def test_a_prefill_chunk_is_never_larger_than_all_sequences() -> None:
    def batched(**workload: int) -> int:
        found = decide_one([gpu_node("h")], request(workload=workload)).plan
        assert found is not None
        return found.max_batched_tokens

    assert batched(maxContextTokens=512, maxConcurrentSequences=2) == 1024
    assert batched(maxBatchedTokens=512) == 512


def test_a_model_quantized_to_blocks_is_native_in_fp32() -> None:
    groups = llama(1, dtype="Q4_1")
    found = decide_one([gpu_node("h")], request(facts=groups)).plan
    assert found is not None
    assert (found.weights, found.kv_cache) == ("FP32", "FP32")


def test_older_gpus_of_the_same_size_come_first() -> None:
    labels = {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.memory": "81920",
        "nvidia.com/gpu.compute.major": "8",
    }
    older = gpu_node("b", labels=labels)
    assert places(decide_one([gpu_node("h"), older], request())) == ["b"]


def test_gpus_of_one_product_that_differ_by_driver_serve_together() -> None:
    nodes = [gpu_node("a", T4, 1), gpu_node("b", T4, 1, labels={"nvidia.com/gpu.memory": "15109"})]
    decision = decide_one(nodes, request(facts=llama(1, dtype="F16"), replicas=2))
    assert places(decision) == ["a", "b"]
    assert decision.plan is not None
    assert decision.plan.memory[0].line == line(15109 * MIB, 3)


def test_tensor_parallel_is_planned_when_the_engine_runs_it() -> None:
    decision = decide_one([gpu_node("h")], request(facts=llama(70, layers=80)), capabilities=WIDE)
    assert decision.plan is not None
    assert decision.plan.summary == f"BF16 TP4xPP1, 4 GPUs on 1 node ({H100})"
    assert [(r.option, r.reason) for r in decision.plan.rejected] == [
        (f"BF16 TP2 on {H100}", "InsufficientMemory"),
        (f"BF16 TP1 on {H100}", "InsufficientMemory"),
    ]


def test_replicas_may_share_a_node_and_one_configuration() -> None:
    nodes = [gpu_node("h", gpus=2), gpu_node("l", L4, 8)]
    decision = decide_one(nodes, request(facts=llama(2), replicas=4))
    assert places(decision) == ["l"] * 4


def test_when_some_replicas_fit_they_are_placed_and_the_others_told() -> None:
    decision = decide_one([gpu_node("h", gpus=2)], request(replicas=3))
    assert places(decision) == ["h", "h"]
    assert decision.unplaced_replicas == (2,)
    assert refused(decision).reason == "InsufficientGPUs"


def test_higher_priority_comes_first_then_age_then_name() -> None:
    old, young = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    requests = [
        request("b", created=young),
        request("a", created=young),
        request("old", created=old),
        request("urgent", created=young, priority=100),
    ]
    for gpus, expected in ((1, {"urgent"}), (2, {"urgent", "old"}), (3, {"urgent", "old", "a"})):
        decisions = plan(snapshot([gpu_node("h", gpus=gpus)], *requests))
        assert {uid.removeprefix("uid-") for uid, d in decisions.items() if d.plan} == expected


def test_a_large_model_that_finds_no_place_does_not_block_a_small_one() -> None:
    decisions = plan(
        snapshot([gpu_node("l", L4, 1)], request("big", priority=9), request("small", facts=llama(2)))
    )
    assert decisions["uid-big"].plan is None
    assert places(decisions["uid-small"]) == ["l"]


def test_what_is_only_planned_or_suspended_holds_nothing() -> None:
    look = request("look", priority=9, plan={"mode": "PlanOnly"})
    rest = request("rest", priority=9, suspend=True)
    work = request("work")
    decisions = plan(snapshot([gpu_node("h", gpus=1)], look, rest, work))
    assert places(decisions["uid-work"]) == ["h"]
    assert refused(decisions["uid-look"]).reason == "InsufficientGPUs"
    assert refused(decisions["uid-rest"]).reason == "InsufficientGPUs"
    alone = plan(snapshot([gpu_node("h", gpus=1)], look, rest))
    assert [places(decision) for decision in alone.values()] == [["h"], ["h"]]


def test_no_replicas_is_a_plan_without_placements() -> None:
    decision = decide_one([gpu_node("h")], request(replicas=0))
    assert decision.plan is not None
    assert places(decision) == []


def test_worker_requests_are_what_the_plan_counts() -> None:
    decision = decide_one([gpu_node("h")], request(podTemplate={"resources": {"cpu": "3500m"}}))
    assert decision.plan is not None
    own = spec(podTemplate={"resources": {"cpu": "3500m"}})
    asked = worker_requests(decision.plan, own, llama())
    assert (asked.cpu_millis, asked.pods, asked.extended) == (3500, 1, {GPU: 1})
    assert asked.memory_bytes == decision.plan.host_memory_bytes
    assert asked.ephemeral_bytes > llama().checkpoint_bytes
    claim = spec(model={"persistentVolumeClaim": {"claimName": "models"}})
    assert worker_requests(decision.plan, claim, llama()).ephemeral_bytes < 2 * GIB


REJECTIONS: dict[str, tuple[list[NodeView], list[PodView], dict[str, Any], Capabilities, str, list[str]]] = {
    "an empty cluster": (
        [],
        [],
        {},
        ONE_CARD,
        "NoMatchingNodes",
        ["nvidia.com/gpu.product", "device: CPU"],
    ),
    "no GPU anywhere": ([node("n")], [], {}, ONE_CARD, "NoMatchingNodes", ["no node offers a GPU"]),
    "only shared GPUs": (
        [gpu_node("t", T4, 4, labels={"nvidia.com/gpu.sharing-strategy": "time-slicing"})],
        [],
        {},
        ONE_CARD,
        "NoMatchingNodes",
        ["no node offers a usable GPU", "t:", "nvidia.com/gpu.sharing-strategy"],
    ),
    "cordoned and not ready": (
        [gpu_node("a", cordoned=True), gpu_node("b", ready=False)],
        [],
        {},
        ONE_CARD,
        "NoMatchingNodes",
        ["none of 2 nodes", "a is cordoned", "b is not ready"],
    ),
    "a taint that is not tolerated": (
        [gpu_node("a", taints=[GPU_TAINT, {"key": "team", "value": "red", "effect": "NoSchedule"}])],
        [],
        {},
        ONE_CARD,
        "NoMatchingNodes",
        ["team=red:NoSchedule", "placement.tolerations"],
    ),
    "a CPU worker does not tolerate the GPU taint": (
        [gpu_node("a")],
        [],
        {"placement": CPU},
        ONE_CARD,
        "NoMatchingNodes",
        ["nvidia.com/gpu=present:NoSchedule"],
    ),
    "another product": (
        [gpu_node("a")],
        [],
        {"placement": {"accelerators": {"products": ["L4", "H200"]}}},
        ONE_CARD,
        "NoMatchingNodes",
        [H100, "placement.accelerators.products asks for L4, H200"],
    ),
    "more memory asked": (
        [gpu_node("a")],
        [],
        {"placement": {"accelerators": {"minMemory": "100Gi"}}},
        ONE_CARD,
        "NoMatchingNodes",
        ["79.6 GiB", "placement.accelerators.minMemory is 100Gi"],
    ),
    "a newer GPU asked, compared as numbers": (
        [gpu_node("a")],
        [],
        {"placement": {"accelerators": {"minComputeCapability": "10.0"}}},
        ONE_CARD,
        "NoMatchingNodes",
        ["compute capability 9.0", "minComputeCapability is 10.0"],
    ),
    "a label asked for": (
        [gpu_node("a")],
        [],
        {"placement": {"nodeSelector": {"pool": "serving"}}},
        ONE_CARD,
        "NoMatchingNodes",
        ["has no label pool=serving"],
    ),
    "taken by others": (
        [gpu_node("a", gpus=2), gpu_node("b", gpus=2)],
        [pod("x", "a", gpus=2), pod("y", "b", gpus=2, bound=False)],
        {},
        ONE_CARD,
        "InsufficientGPUs",
        [f"BF16 TP1 on {H100} fits", "all 4 GPUs on a, b are taken"],
    ),
    "taken by pods that are still terminating": (
        [gpu_node("a", gpus=1)],
        [pod("x", "a", gpus=1, terminating=True)],
        {},
        ONE_CARD,
        "InsufficientGPUs",
        ["all 1 GPU on a are taken"],
    ),
    "free GPUs on different nodes": (
        [gpu_node("a"), gpu_node("b")],
        [pod("x", "a", gpus=5), pod("y", "b", gpus=5)],
        {"facts": llama(70, layers=80)},
        WIDE,
        "InsufficientGPUs",
        ["needs 4 free GPUs on one node", "6 of 16 are free on a, b"],
    ),
    "no CPU left": (
        [gpu_node("a", cpu="1")],
        [],
        {},
        ONE_CARD,
        "InsufficientResources",
        ["a comes nearest and lacks cpu 1.5, 1 free"],
    ),
    "no disk to fetch to": (
        [gpu_node("a", ephemeral="10Gi")],
        [],
        {},
        ONE_CARD,
        "InsufficientResources",
        ["ephemeral-storage", "10.0 GiB free"],
    ),
    "no pod slot left": (
        [gpu_node("a", pods="1")],
        [pod("x", "a")],
        {},
        ONE_CARD,
        "InsufficientResources",
        ["pods 1, 0 free"],
    ),
    "no host memory left": (
        [gpu_node("a", memory="8Gi")],
        [pod("x", "a", memory=6 * GIB)],
        {},
        ONE_CARD,
        "InsufficientResources",
        ["memory", "2.0 GiB free"],
    ),
    "too big, and a smaller workload would fit": (
        [gpu_node("l", L4, 1)],
        [],
        {},
        ONE_CARD,
        "InsufficientMemory",
        [
            " GiB a GPU (weights 14.9 GiB, KV cache 8.0 GiB, ",
            f"the largest usable GPU, {L4} on l, has a line of 21.8 GiB",
            "would fit with workload.maxContextTokens: ",
            "workload.maxConcurrentSequences: ",
        ],
    ),
    "too big whatever the workload": (
        [gpu_node("l", L4, 2)],
        [],
        {"facts": llama(405, layers=126)},
        ONE_CARD,
        "InsufficientMemory",
        ["even over 2 NVIDIA-L4 it needs", "no change of workload makes it fit"],
    ),
    "FP32 where BF16 would fit": (
        [gpu_node("l", L4, 1)],
        [],
        {"facts": llama(4, dtype="F32"), "workload": {"maxConcurrentSequences": 4}},
        ONE_CARD,
        "InsufficientMemory",
        ["BF16 would fit on 1 GPU of l: set quantization.floor: BF16"],
    ),
    "no node has the memory, on CPU": (
        [node("a", memory="6Gi"), node("b", memory="8Gi")],
        [pod("x", "b", memory=3 * GIB)],
        {"placement": CPU, "facts": llama(1, layers=8)},
        ONE_CARD,
        "InsufficientMemory",
        [
            "of memory on one node (weights ",
            "the most any node has free is 6.0 GiB (a)",
            "would fit with workload.maxContextTokens: ",
        ],
    ),
    "more ranks than the engine runs": (
        [gpu_node("h")],
        [],
        {"facts": llama(70, layers=80)},
        ONE_CARD,
        "EngineUnsupported",
        [
            f"BF16 TP4 would fit on 4 {H100} of one node",
            "engine 0.3.0 runs tensor parallel 1",
            "TP1 needs 15",
        ],
    ),
    "BF16 on a GPU that has none": (
        [gpu_node("t", T4, 1)],
        [],
        {"facts": llama(2)},
        ONE_CARD,
        "EngineUnsupported",
        ["BF16 needs compute capability 8.0 and the GPU has 7.5"],
    ),
    "BF16 on CPU": (
        [node("n")],
        [],
        {"placement": CPU, "quantization": {"weights": "BF16"}},
        ONE_CARD,
        "EngineUnsupported",
        ["engine 0.3.0 runs FP32 or INT8 or FP8 or INT4 on CPU"],
    ),
    "an architecture that the engine does not know": (
        [gpu_node("h")],
        [],
        {"facts": llama(8, architecture="falcon")},
        ONE_CARD,
        "EngineUnsupported",
        ["runs the architectures llama, mistral, qwen2", "this model is falcon"],
    ),
    "a quantized checkpoint": (
        [gpu_node("h")],
        [],
        {"facts": llama(8).model_copy(update={"quantization": "bitsandbytes"})},
        ONE_CARD,
        "EngineUnsupported",
        ["engine 0.3.0 loads no bitsandbytes checkpoint", "name the unquantized one in spec.model"],
    ),
    "a context longer than the model's": (
        [gpu_node("h")],
        [],
        {"workload": {"maxContextTokens": 200000}},
        ONE_CARD,
        "ContextTooLong",
        ["spec.workload.maxContextTokens is 200000", "write 131072 or less"],
    ),
    "a claim that is gone": (
        [gpu_node("h")],
        [],
        {
            "volume": volume(
                bound=False, reason="PersistentVolumeClaim models does not exist in namespace default"
            )
        },
        ONE_CARD,
        "VolumeUnavailable",
        ["PersistentVolumeClaim models does not exist"],
    ),
    "a claim that is not bound": (
        [gpu_node("h")],
        [],
        {"volume": volume(bound=False)},
        ONE_CARD,
        "VolumeUnavailable",
        ["PersistentVolumeClaim models is not bound"],
    ),
    "a volume of another node": (
        [gpu_node("h")],
        [],
        {"volume": volume("ReadWriteOnce", node_names=frozenset({"elsewhere"}))},
        ONE_CARD,
        "VolumeUnavailable",
        ["h cannot reach the volume of PersistentVolumeClaim models"],
    ),
    "a volume that another node uses": (
        [gpu_node("h")],
        [],
        {"volume": volume("ReadWriteOnce", used_on=frozenset({"other"}))},
        ONE_CARD,
        "VolumeUnavailable",
        ["it is ReadWriteOnce and in use on other"],
    ),
    "a node that failed before": (
        [gpu_node("h")],
        [],
        {"excluded": frozenset({"h"})},
        ONE_CARD,
        "NoMatchingNodes",
        ["h did not take a pod of this deployment before"],
    ),
}


@pytest.mark.parametrize(
    ("nodes", "pods", "fields", "capabilities", "reason", "told"), REJECTIONS.values(), ids=REJECTIONS.keys()
)
def test_a_rejection_names_its_reason_and_what_to_do(
    nodes: list[NodeView],
    pods: list[PodView],
    fields: dict[str, Any],
    capabilities: Capabilities,
    reason: str,
    told: list[str],
) -> None:
    decision = decide_one(nodes, request(**fields), pods=pods, capabilities=capabilities)
    assert decision.plan is None
    assert decision.unplaced_replicas == (0,)
    rejection = refused(decision)
    assert rejection.reason == reason, rejection.message
    for text in told:
        assert text in rejection.message


def test_what_a_rejection_proposes_really_fits() -> None:
    nodes = [gpu_node("l", L4, 1)]
    message = refused(decide_one(nodes, request())).message
    words = message.split()
    context = int(words[words.index("workload.maxContextTokens:") + 1].rstrip(";"))
    sequences = int(words[words.index("workload.maxConcurrentSequences:") + 1].rstrip(";"))
    for workload, fits in (
        ({"maxContextTokens": context}, True),
        ({"maxContextTokens": context + 16}, False),
        ({"maxConcurrentSequences": sequences}, True),
        ({"maxConcurrentSequences": sequences + 1}, False),
    ):
        assert (decide_one(nodes, request(workload=workload)).plan is not None) is fits


def test_at_most_eight_rejected_options_the_nearest_first() -> None:
    nodes = [gpu_node("h"), gpu_node("l", L4, 8), gpu_node("t", T4, 8)]
    rejected = refused(decide_one(nodes, request(facts=llama(405, layers=126)))).rejected
    assert len(rejected) == 8
    assert rejected[0].option == f"BF16 TP8 on {H100}"
    assert all("GiB" in option.message for option in rejected)


def test_a_volume_that_attaches_once_keeps_all_replicas_on_one_node() -> None:
    nodes = [gpu_node("a", gpus=1), gpu_node("b", gpus=3)]
    once = volume("ReadWriteOnce")
    assert places(decide_one(nodes, request(replicas=2, volume=once))) == ["b", "b"]
    everywhere = volume("ReadOnlyMany")
    assert places(decide_one(nodes, request(replicas=2, volume=everywhere))) == ["a", "b"]


def test_a_volume_for_one_pod_serves_one_replica() -> None:
    decision = decide_one([gpu_node("a")], request(replicas=2, volume=volume("ReadWriteOncePod")))
    assert places(decision) == ["a"]
    assert decision.unplaced_replicas == (1,)
    assert refused(decision).reason == "VolumeUnavailable"


def test_the_plan_id_changes_with_what_workers_run_and_with_nothing_else() -> None:
    def plan_id(nodes: list[NodeView], **fields: Any) -> str:
        found = decide_one(nodes, request(**fields)).plan
        assert found is not None
        return found.id

    base = plan_id([gpu_node("h")])
    assert plan_id([gpu_node("i"), gpu_node("j")], replicas=3) == base
    assert plan_id([gpu_node("h")], workload={"maxConcurrentSequences": 4}) != base
    assert plan_id([gpu_node("h")], placement={"memoryHeadroomPercent": 10}) != base
