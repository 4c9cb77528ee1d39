"""The planner's pools and shelves answer like the plainest reading of the rule: every option tried in order,
every node asked for every pod."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.planning.builders import (
    GPU_TAINT,
    H100,
    L4,
    T4,
    WIDE,
    gpu_node,
    llama,
    pod,
    request,
    snapshot,
)

from plimsoll.inventory.capacity import free_by_node, shortages, subtract
from plimsoll.inventory.gpu_class import GPUClass
from plimsoll.inventory.labels import gpu_classes
from plimsoll.inventory.quantity import at_least
from plimsoll.inventory.views import NodeView, Resources, VolumeView
from plimsoll.planning.eligibility import Eligibility
from plimsoll.planning.formats import formats
from plimsoll.planning.options import workloads
from plimsoll.planning.placement import newly_stranded, slot_loss
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Snapshot
from plimsoll.sizing.footprint import footprint
from plimsoll.sizing.host import cpu_request, ephemeral_storage, host_memory
from plimsoll.sizing.runtime import line
from plimsoll_worker.launch import Device

MODELS = [llama(1, layers=16), llama(8), llama(30, layers=48), llama(70, layers=80)]
TEAM = {"key": "team", "value": "red", "effect": "NoSchedule"}
Choice = tuple[str, int, int, list[str]]
"""Product, tensor parallel, line, nodes by replica."""


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Up to eight nodes that differ in all that the filters look at, and one deployment."""
    nodes = [
        gpu_node(
            f"n{index}",
            draw(st.sampled_from([H100, L4, L4, T4])),
            draw(st.sampled_from([1, 2, 4, 8])),
            cpu=draw(st.sampled_from(["3", "6", "14", "40", "96"])),
            memory=draw(st.sampled_from(["16Gi", "1024Gi"])),
            taints=[GPU_TAINT, TEAM] if draw(st.integers(0, 4)) == 0 else [GPU_TAINT],
            cordoned=draw(st.integers(0, 9)) == 0,
            labels={"pool": draw(st.sampled_from(["a", "b"]))},
        )
        for index in range(draw(st.integers(1, 8)))
    ]
    for node in list(nodes):
        if T4 in node.labels["nvidia.com/gpu.product"] and draw(st.booleans()):
            labels = {**node.labels, "nvidia.com/gpu.memory": "15109"}
            changed = replace(node, labels=labels)
            nodes[nodes.index(node)] = replace(changed, gpus=gpu_classes(changed))
    names = [node.name for node in nodes]
    pods = [
        pod(f"p{index}", draw(st.sampled_from(names)), gpus=draw(st.integers(0, 5)))
        for index in range(draw(st.integers(0, 6)))
    ]
    placement = {}
    if draw(st.integers(0, 3)) == 0:
        placement["nodeSelector"] = {"pool": "a"}
    if draw(st.booleans()):
        placement["tolerations"] = [{"key": "team", "operator": "Exists"}]
    reach = frozenset(draw(st.lists(st.sampled_from(names), min_size=1)))
    volume = VolumeView("default", "models", bound=True, access_modes=("ReadOnlyMany",), node_names=reach)
    asked = request(
        facts=draw(st.sampled_from(MODELS)),
        replicas=draw(st.integers(1, 5)),
        quantization={"weights": draw(st.sampled_from(["Native", "FP32"]))},
        placement=placement,
        podTemplate={"resources": {"cpu": draw(st.sampled_from([None, "10"]))}},
        volume=draw(st.sampled_from([None, None, volume])),
        excluded=frozenset(draw(st.lists(st.sampled_from(names), max_size=1))),
    )
    return snapshot(nodes, asked, pods=pods, capabilities=WIDE)


def options(world: Snapshot) -> list[tuple[tuple[object, ...], GPUClass, int, int, list[NodeView]]]:
    """(order, GPU, tensor parallel, line, nodes) of all that fits in bytes and that the engine runs."""
    (asked,) = world.deployments
    eligibility = Eligibility(asked)
    (kept,) = formats(asked.spec, asked.facts)
    ordered = sorted(world.nodes, key=lambda node: node.name)
    usable = [
        (n, gpu) for n in ordered for gpu in gpu_classes(n) if gpu.usable and not eligibility.obstacle(n)
    ]
    found = []
    for product in {gpu.product for _, gpu in usable}:
        mine = [(node, gpu) for node, gpu in usable if gpu.product == product]
        for tensor in (1, 2, 4, 8):
            loads = workloads(asked.spec, asked.facts)
            tried = [footprint(asked.facts, kept.configuration(Device.GPU, tensor), load) for load in loads]
            most = max(line(gpu.memory_bytes, 3) for _, gpu in mine)
            needed = next((one for one in tried if one.worst.total <= most), tried[0]).worst.total
            wide = [(node, gpu) for node, gpu in mine if gpu.total >= tensor]
            memories = sorted({gpu.memory_bytes for _, gpu in wide if line(gpu.memory_bytes, 3) >= needed})
            capability = mine[0][1].compute_capability or (0, 0)
            if memories and not (kept.weights == "BF16" and capability < (8, 0)):
                nodes = [node for node, gpu in wide if gpu.memory_bytes >= memories[0]]
                order = (tensor, round(memories[0] / (8 << 30)), capability, memories[0], product)
                found.append((order, wide[0][1], tensor, line(memories[0], 3), nodes))
            if line(min(gpu.memory_bytes for _, gpu in mine), 3) >= needed:
                break
    return sorted(found, key=lambda option: option[0])


def asks_for(world: Snapshot, tensor: int, resource: str) -> Resources:
    (asked,) = world.deployments
    config = formats(asked.spec, asked.facts)[0].configuration(Device.GPU, tensor)
    sized = footprint(asked.facts, config, workloads(asked.spec, asked.facts)[0])
    return Resources(
        cpu_millis=at_least(asked.spec.pod_template.resources.cpu or "0", 1000) or cpu_request(sized),
        memory_bytes=host_memory(asked.facts, sized),
        ephemeral_bytes=ephemeral_storage(asked.facts, fetches=True),
        pods=1,
        extended={resource: tensor},
    )


def reference(world: Snapshot) -> Choice | None:
    (asked,) = world.deployments
    best: Choice | None = None
    for _, gpu, tensor, drawn, nodes in options(world):
        free = free_by_node(world.nodes, world.pods)
        requests = asks_for(world, tensor, gpu.resource_name)
        placed: list[str] = []
        for _ in range(asked.spec.replicas):
            able = [node.name for node in nodes if not shortages(requests, free[node.name])]
            if not able:
                break

            def order(name: str) -> tuple[object, ...]:
                there = free[name].extended[gpu.resource_name]  # noqa: B023
                cpu = free[name].cpu_millis  # noqa: B023
                stranded = newly_stranded(there, cpu, tensor, requests.cpu_millis)  # noqa: B023
                return stranded, slot_loss(there, tensor), there, cpu, name  # noqa: B023

            chosen = min(able, key=order)
            free[chosen] = subtract(free[chosen], requests)
            placed.append(chosen)
        if len(placed) > (len(best[3]) if best else 0):
            best = (gpu.product, tensor, drawn, placed)
        if len(placed) == asked.spec.replicas:
            return gpu.product, tensor, drawn, placed
    return best


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_the_plan_is_the_one_that_asking_every_node_gives(world: Snapshot) -> None:
    (asked,) = world.deployments
    decided = plan(world)[asked.uid].plan
    found = (
        (
            decided.product,
            decided.tensor_parallel,
            decided.memory[0].line,
            [placement.node for placement in decided.placements],
        )
        if decided
        else None
    )
    assert found == reference(world)
