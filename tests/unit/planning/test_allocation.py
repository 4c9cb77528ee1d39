"""GPUs that a device plugin offers and GPUs that are claimed are planned alike; the plan tells which."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.inventory.test_dra import claim, device, resource_slice
from tests.unit.planning.builders import L4, WIDE, gpu_node, llama, node, pod, request, snapshot

from plimsoll.inventory.device_pools import DevicePools
from plimsoll.inventory.dra import claim_view, slice_view
from plimsoll.inventory.views import NodeView
from plimsoll.planning.explain import reasons
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decision

RESOURCE = "gpu.nvidia.com/NVIDIA-A100-PCIE-40GB"
SMALL = llama(1.0, layers=8)


def dra_node(name: str = "dra", gpus: int = 4, *held: str) -> NodeView:
    """A node that serves A100s by DRA, some of them held by claims that no pod speaks for."""
    devices = slice_view(resource_slice(*(device(f"gpu-{n}") for n in range(gpus)), node=name))
    assert devices is not None
    claims = [view for one in held if (view := claim_view(claim(one, one, node=name)))]
    (found,), _ = DevicePools([devices]).count([node(name)], (), claims)
    return found


def decided(nodes: list[NodeView], **fields: Any) -> Decision:
    asked = request(facts=SMALL, **fields)
    return plan(snapshot(nodes, asked, capabilities=WIDE))[asked.uid]


@pytest.mark.parametrize(
    ("allocation", "where", "resource", "told"),
    [
        ("Auto", "dra", RESOURCE, "DRA"),
        ("DRA", "dra", RESOURCE, "DRA"),
        ("DevicePlugin", "plugin", "nvidia.com/gpu", "DevicePlugin"),
    ],
)
def test_auto_takes_what_a_node_offers(allocation: str, where: str, resource: str, told: str) -> None:
    nodes = [dra_node(), gpu_node("plugin")]
    found = decided(nodes, placement={"allocation": allocation}).plan
    assert found is not None
    assert [placement.node for placement in found.placements] == [where]
    assert (found.resource_name, found.allocation) == (resource, told)


@pytest.mark.parametrize(
    ("allocation", "only", "told"),
    [
        ("DRA", gpu_node("plugin", L4), "plugin has NVIDIA-L4 by DevicePlugin, placement.allocation is DRA"),
        (
            "DevicePlugin",
            dra_node(),
            "dra has NVIDIA-A100-PCIE-40GB by DRA, placement.allocation is DevicePlugin",
        ),
    ],
)
def test_what_is_offered_otherwise_is_told(allocation: str, only: NodeView, told: str) -> None:
    rejection = decided([only], placement={"allocation": allocation}).rejection
    assert rejection is not None
    assert rejection.reason == "NoMatchingNodes"
    assert told in rejection.message


def test_held_devices_are_taken() -> None:
    assert decided([dra_node("dra", 4, "gpu-0", "gpu-1", "gpu-2")]).plan is not None
    rejection = decided([dra_node("dra", 2, "gpu-0", "gpu-1")]).rejection
    assert rejection is not None
    assert rejection.reason == "InsufficientGPUs"


def test_several_gpus_of_one_node_are_one_claim() -> None:
    asked = request(facts=llama(30.0), workload={"maxContextTokens": 1024})
    found = plan(snapshot([dra_node()], asked, pods=[pod("x", "dra")], capabilities=WIDE))[asked.uid].plan
    assert found is not None
    assert (found.tensor_parallel, found.allocation) == (2, "DRA")
    assert [placement.gpus for placement in found.placements] == [2]
    assert "GPUs are claimed by DRA, from the DeviceClass gpu.nvidia.com" in reasons(found, asked.spec)
