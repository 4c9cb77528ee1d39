"""ResourceSlices and ResourceClaims become kinds of GPU and free counts: devices are not GPUs, and what is
not known whole is not free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.inventory.capacity import free_by_node
from plimsoll.inventory.device_pools import DevicePools
from plimsoll.inventory.dra import claim_view, slice_view
from plimsoll.inventory.gpu_class import GPUClass
from plimsoll.inventory.nodes import DEVICES, node_view, pod_view
from plimsoll.inventory.views import NodeView

DRIVER = "gpu.nvidia.com"
A100 = "NVIDIA A100-PCIE-40GB"
RESOURCE = "gpu.nvidia.com/NVIDIA-A100-PCIE-40GB"
Object = dict[str, Any]


def device(name: str, kind: str = "gpu", memory: str = "40Gi", **more: Any) -> Object:
    """A device as the driver publishes it; `more`: fields of the device, or attributes by `text_NAME`."""
    attributes: Object = {
        "type": {"string": kind},
        "productName": {"string": A100},
        "cudaComputeCapability": {"version": "8.0.0"},
        "uuid": {"string": f"GPU-{name}"},
        "resource.kubernetes.io/pcieRoot": {"string": "pci0000:64"},
    }
    attributes |= {
        key.removeprefix("text_"): {"string": value} for key, value in more.items() if key.startswith("text_")
    }
    fields = {key: value for key, value in more.items() if not key.startswith("text_")}
    return {"name": name, "attributes": attributes, "capacity": {"memory": {"value": memory}}} | fields


def resource_slice(*devices: Object, node: str = "a", driver: str = DRIVER, **pool: Any) -> Object:
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1} | pool
    name = f"{node}-{pool.get('generation')}-{len(devices)}"
    spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": list(devices)}
    return {"metadata": {"name": name}, "spec": spec}


def claim(name: str, *devices: str, node: str = "a", pod: str = "", **result: Any) -> Object:
    results = [{"driver": DRIVER, "pool": node, "device": one, "request": "gpus"} | result for one in devices]
    status: Object = {"allocation": {"devices": {"results": results}}}
    if pod:
        status["reservedFor"] = [{"resource": "pods", "name": pod, "uid": f"uid-{pod}"}]
    return {"metadata": {"name": name, "namespace": "ns"}, "status": status}


def pod(name: str, node: str = "a", devices: str = "") -> Object:
    meta = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "annotations": {DEVICES: devices}}
    return {"metadata": meta, "spec": {"nodeName": node, "resourceClaims": [{"name": "gpus"}]}}


def node(name: str = "a", labels: dict[str, str] | None = None, **allocatable: str) -> Object:
    given = {key.replace("__", "/").replace("_", "."): value for key, value in allocatable.items()}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "status": {"allocatable": {"cpu": "8"} | given},
    }


def counted(
    slices: Sequence[Object], claims: Sequence[Object] = (), pods: Sequence[Object] = (), *nodes: Object
) -> tuple[dict[str, NodeView], dict[str, dict[str, int]]]:
    """Nodes by name, and what is free of extended resources on each."""
    pools = DevicePools(view for obj in slices if (view := slice_view(obj)))
    views = [view for obj in pods if (view := pod_view(obj))]
    found, holders = pools.count(
        [node_view(obj) for obj in nodes or (node(),)],
        views,
        [view for obj in claims if (view := claim_view(obj))],
    )
    free = free_by_node(found, [holders.get(view.uid, view) for view in views])
    return {one.name: one for one in found}, {name: dict(left.extended) for name, left in free.items()}


def only(*slices: Object, on: Object | None = None) -> GPUClass:
    nodes, _ = counted(slices, (), (), on or node())
    (gpu,) = nodes["a"].gpus
    return gpu


def test_devices_of_one_product_are_gpus_of_the_node() -> None:
    gpu = only(resource_slice(device("gpu-0"), device("gpu-1")))
    assert (gpu.vendor, gpu.product, gpu.memory_bytes) == ("NVIDIA", "NVIDIA-A100-PCIE-40GB", 40 << 30)
    assert (gpu.compute_capability, gpu.total, gpu.sharing.value) == ((8, 0), 2, "None")
    assert (gpu.resource_name, gpu.allocation.value, gpu.usable, gpu.reason) == (RESOURCE, "DRA", True, "")


def test_names_with_the_drivers_own_domain_are_the_same() -> None:
    plain = device("gpu-0")
    named = {
        "name": "gpu-0",
        "attributes": {
            key if "/" in key else f"{DRIVER}/{key}": value for key, value in plain["attributes"].items()
        },
        "capacity": {f"{DRIVER}/memory": {"value": "40Gi"}},
    }
    assert only(resource_slice(named)) == only(resource_slice(plain))


def test_two_products_on_one_node_are_two_kinds() -> None:
    other = device("gpu-1", memory="23034Mi", text_productName="NVIDIA L4")
    nodes, free = counted([resource_slice(device("gpu-0"), other)])
    assert [gpu.product for gpu in nodes["a"].gpus] == ["NVIDIA-A100-PCIE-40GB", "NVIDIA-L4"]
    assert free["a"] == {RESOURCE: 1, "gpu.nvidia.com/NVIDIA-L4": 1}


def test_what_a_claim_holds_is_not_free_whoever_has_it() -> None:
    four = resource_slice(*(device(f"gpu-{n}") for n in range(4)))
    claims = [
        claim("of-a-pod", "gpu-0", pod="x"),
        claim("left-over", "gpu-1"),
        claim("for-admins", "gpu-2", adminAccess=True),
    ]
    nodes, free = counted([four], claims, [pod("x")])
    assert nodes["a"].gpus[0].total == 4
    assert free["a"][RESOURCE] == 2


def test_a_shared_claim_holds_its_devices_once() -> None:
    two = resource_slice(device("gpu-0"), device("gpu-1"))
    shared = claim("shared", "gpu-0", pod="x")
    shared["status"]["reservedFor"].append({"name": "y", "uid": "uid-y"})
    _, free = counted([two], [shared], [pod("x"), pod("y")])
    assert free["a"][RESOURCE] == 1


def test_a_pod_of_ours_holds_what_it_asks_for_until_its_claim_holds_it() -> None:
    two = resource_slice(device("gpu-0"), device("gpu-1"))
    ours = pod("x", devices=f'{{"{RESOURCE}": 1}}')
    assert counted([two], [], [ours])[1]["a"][RESOURCE] == 1
    assert counted([two], [claim("c", "gpu-1", pod="x")], [ours])[1]["a"][RESOURCE] == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "many"}', '{"a": -1}', "null"])
def test_an_annotation_edited_by_hand_asks_for_nothing(text: str) -> None:
    view = pod_view(pod("x", devices=text))
    assert view is not None
    assert view.devices == {}


def test_tainted_devices_are_not_there() -> None:
    tainted = device("gpu-1", taints=[{"key": "example.com/broken", "effect": "NoSchedule"}])
    harmless = device("gpu-2", taints=[{"key": "example.com/note", "effect": "None"}])
    assert only(resource_slice(device("gpu-0"), tainted, harmless)).total == 2
    alone = only(resource_slice(tainted))
    assert (alone.total, alone.usable) == (0, False)
    assert "all 1 devices are tainted example.com/broken:NoSchedule" in alone.reason


def test_only_the_newest_generation_counts_and_only_when_it_is_complete() -> None:
    old = resource_slice(device("gpu-0"), device("gpu-1"), generation=1)
    first = resource_slice(device("gpu-0"), generation=2, resourceSliceCount=2)
    second = resource_slice(device("gpu-1"), generation=2, resourceSliceCount=2)
    second["metadata"]["name"] = "second"
    partial = only(old, first)
    assert (partial.total, partial.usable) == (1, False)
    assert "pool a of driver gpu.nvidia.com shows 1 of 2 ResourceSlices of generation 2" in partial.reason
    whole = only(old, first, second)
    assert (whole.total, whole.usable) == (2, True)


def test_slices_of_a_cut_gpu_are_a_kind_of_their_own_and_the_gpu_is_not_there() -> None:
    part = device("gpu-0-mig-0", "mig", "4864Mi", text_profile="1g.5gb", text_parentUUID="GPU-gpu-0")
    nodes, free = counted([resource_slice(device("gpu-0"), device("gpu-1"), part)])
    whole, cut = nodes["a"].gpus
    assert (whole.total, whole.sharing.value) == (1, "None")
    assert (cut.product, cut.sharing.value, cut.usable) == ("NVIDIA-A100-PCIE-40GB-MIG-1g.5gb", "MIG", True)
    assert free["a"] == {RESOURCE: 1, "mig.nvidia.com/NVIDIA-A100-PCIE-40GB-MIG-1g.5gb": 1}


def on_demand(gpu: int) -> list[Object]:
    """A GPU, and the ways it could be cut: all draw on its counters."""
    counters = [{"counterSet": f"gpu-{gpu}-counters", "counters": {"memory-slice-0": {"value": "1"}}}]
    ways = [
        device(f"gpu-{gpu}-mig-{way}", "mig", "4864Mi", text_profile="1g.5gb", consumesCounters=counters)
        for way in range(7)
    ]
    return [device(f"gpu-{gpu}", consumesCounters=counters), *ways]


def test_slices_that_could_be_cut_on_demand_are_no_gpus() -> None:
    nodes, free = counted([resource_slice(*on_demand(0), *on_demand(1))])
    whole, ways = nodes["a"].gpus
    assert (whole.total, whole.usable) == (2, True)
    assert (ways.total, ways.usable) == (0, False)
    assert "14 MIG slices that could be cut on demand" in ways.reason
    assert free["a"][RESOURCE] == 2


def test_a_gpu_is_held_by_whatever_is_cut_from_it() -> None:
    claims = [claim("one", "gpu-0-mig-0", pod="x"), claim("two", "gpu-0-mig-3")]
    _, free = counted([resource_slice(*on_demand(0), *on_demand(1))], claims, [pod("x")])
    assert free["a"][RESOURCE] == 1


def test_gpus_that_two_allocators_offer_are_taken_from_the_device_plugin() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-PCIE-40GB", "nvidia.com/gpu.memory": "40960"}
    both = node("a", labels, nvidia_com__gpu="2")
    nodes, free = counted([resource_slice(device("gpu-0"), device("gpu-1"))], [claim("c", "gpu-0")], (), both)
    plugin, dra = nodes["a"].gpus
    assert (plugin.usable, dra.usable) == (True, False)
    assert "only one of device plugin and DRA may run" in dra.reason
    assert free["a"]["nvidia.com/gpu"] == 1


def test_labels_without_a_device_plugin_are_the_devices_of_dra() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-PCIE-40GB", "nvidia.com/gpu.memory": "40960"}
    assert only(resource_slice(device("gpu-0")), on=node("a", labels)).allocation.value == "DRA"


REFUSED: dict[str, tuple[Object, str, str]] = {
    "no product": (device("gpu-0", text_productName=""), DRIVER, "productName=''"),
    "a product that is no name": (device("gpu-0", text_productName="x' || true"), DRIVER, "productName="),
    "no memory": (device("gpu-0") | {"capacity": {}}, DRIVER, "memory of 0 bytes"),
    "memory in MiB without a unit": (device("gpu-0", memory="40960"), DRIVER, "memory of 40960 bytes"),
    "memory that is no quantity": (device("gpu-0", memory="much"), DRIVER, "memory of 0 bytes"),
    "passed through to virtual machines": (device("gpu-0", "vfio"), DRIVER, "type='vfio'"),
    "no type": (device("gpu-0", ""), DRIVER, "type=''"),
    "shared": (device("gpu-0", allowMultipleAllocations=True), DRIVER, "allowMultipleAllocations"),
    "a slice of no profile": (device("s", "mig", text_profile="tiny"), DRIVER, "profile='tiny'"),
    "a slice with its GPU's memory": (device("s", "mig", text_profile="1g.5gb"), DRIVER, "profile='1g.5gb'"),
    "AMD": (device("gpu-0", "amdgpu"), "gpu.amd.com", "NVIDIA GPUs (gpu.nvidia.com) only"),
    "a vendor nobody knows": (device("gpu-0"), "gpu.example.com", "NVIDIA GPUs (gpu.nvidia.com) only"),
}


@pytest.mark.parametrize(("entry", "driver", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_listed_with_its_reason(entry: Object, driver: str, told: str) -> None:
    gpu = only(resource_slice(entry, driver=driver))
    assert (gpu.usable, gpu.total) == (False, 1)
    assert told in gpu.reason


def test_other_drivers_and_devices_of_no_node_are_not_gpus() -> None:
    network = resource_slice(device("gpu-0"))
    del network["spec"]["nodeName"]
    domain = resource_slice(device("channel-0", ""), driver="compute-domain.nvidia.com")
    nodes, _ = counted([network, domain])
    assert nodes["a"].gpus == ()
    per_device = resource_slice(device("gpu-0", nodeName="a"))
    del per_device["spec"]["nodeName"]
    assert only(per_device).total == 1


def test_slices_of_a_node_that_is_gone_are_nobodys() -> None:
    nodes, _ = counted([resource_slice(device("gpu-0"), node="gone")], [claim("c", "gpu-0", node="gone")])
    assert nodes.keys() == {"a"}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 99)
    | st.sampled_from(["", "1", "gpu", "40Gi", "8.0.0", DRIVER]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "type", "string", "value", "memory", "devices", "results", "uid", "driver"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["attributes", "capacity", "taints", "consumesCounters", "name"]), JSON),
    JSON,
)
def test_slices_and_claims_of_any_shape_are_read(entry: Object, allocation: Any) -> None:
    odd = {"metadata": {"name": "c"}, "status": {"allocation": allocation, "reservedFor": allocation}}
    nodes, _ = counted([resource_slice(entry, device("gpu-0"))], [odd, claim("c", "gpu-0")])
    assert all(gpu.usable or gpu.reason for gpu in nodes["a"].gpus)
