"""Label sets of real nodes and invented contradictions: told apart, never an exception, always a reason.

The sets marked "live" were printed by real nodes; "docs" come from the publishers' own documentation.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.inventory import products
from plimsoll.inventory.labels import GPUClass, gpu_classes
from plimsoll.inventory.nodes import node_view

MIB = 1 << 20
NV = "nvidia.com/gpu"
KARPENTER = "karpenter.k8s.aws/instance-gpu-"
GKE = "cloud.google.com/gke-"


def gfd(product: str, memory: int | str, count: int | str = 1, **more: str) -> dict[str, str]:
    """Labels of GPU feature discovery; `more` by the last part of the label, dots as underscores."""
    labels = {f"{NV}.product": product, f"{NV}.memory": str(memory), f"{NV}.count": str(count)}
    return labels | {f"{NV}.{name.replace('_', '.')}": value for name, value in more.items()}


def classes(
    labels: dict[str, str], allocatable: dict[str, str], annotations: dict[str, str] | None = None
) -> tuple[GPUClass, ...]:
    meta = {"name": "n", "labels": labels, "annotations": annotations or {}}
    return gpu_classes(node_view({"metadata": meta, "status": {"allocatable": allocatable}}))


def only(*args: Any) -> GPUClass:
    (found,) = classes(*args)
    return found


CC = {"compute_major": "9", "compute_minor": "0"}
WHOLE: dict[str, tuple[dict[str, str], int, str, int, tuple[int, int]]] = {
    "T4 pair, feature discovery of 2023 (live)": (
        gfd("Tesla-T4", 15360, 2, compute_major="7", compute_minor="5", replicas="1")
        | {"nvidia.com/mig.strategy": "mixed", "nvidia.com/cuda.driver.major": "525"},
        2,
        "Tesla-T4",
        15360,
        (7, 5),
    ),
    "H100 pair, MIG capable and disabled (live)": (
        gfd("NVIDIA-H100-80GB-HBM3", 81559, 2, **CC, replicas="1")
        | {f"{NV}.sharing-strategy": "none", "nvidia.com/mig.strategy": "single"},
        2,
        "NVIDIA-H100-80GB-HBM3",
        81559,
        (9, 0),
    ),
    "L4 (live)": (
        gfd("NVIDIA-L4", 23034, 1, compute_major="8", compute_minor="9")
        | {"nvidia.com/mig.strategy": "single"},
        1,
        "NVIDIA-L4",
        23034,
        (8, 9),
    ),
    "A100 of an old driver, no vendor in its name (docs)": (
        gfd("A100-SXM4-40GB", 39538, 1, compute_major="8", compute_minor="0"),
        1,
        "A100-SXM4-40GB",
        39538,
        (8, 0),
    ),
    "GB200 without capability labels (mock)": (
        gfd("NVIDIA-GB200", 196608, 4),
        4,
        "NVIDIA-GB200",
        196608,
        (10, 0),
    ),
    "EKS Karpenter T4: EC2's memory is not NVML's (docs)": (
        {f"{KARPENTER}name": "t4", f"{KARPENTER}memory": "16384", f"{KARPENTER}count": "4"},
        4,
        "Tesla-T4",
        15109,
        (7, 5),
    ),
    "EKS Karpenter A100 of 80 GB (docs)": (
        {f"{KARPENTER}name": "a100", f"{KARPENTER}memory": "81920", f"{KARPENTER}count": "8"},
        8,
        "NVIDIA-A100-SXM4-80GB",
        81920,
        (8, 0),
    ),
    "EKS Karpenter B200 (docs)": (
        {f"{KARPENTER}name": "b200", f"{KARPENTER}memory": "183359", f"{KARPENTER}count": "8"},
        8,
        "NVIDIA-B200",
        183359,
        (10, 0),
    ),
    "EKS Auto Mode L4 (docs)": (
        {"eks.amazonaws.com/instance-gpu-name": "l4", "eks.amazonaws.com/instance-gpu-memory": "22888"},
        8,
        "NVIDIA-L4",
        22888,
        (8, 9),
    ),
    "GKE (docs)": (
        {f"{GKE}accelerator": "nvidia-h100-80gb", f"{GKE}accelerator-count": "8"},
        8,
        "NVIDIA-H100-80GB-HBM3",
        81559,
        (9, 0),
    ),
    "CoreWeave names the model only (docs)": (
        {"gpu.nvidia.com/model": "H200", "gpu.nvidia.com/count": "8"},
        8,
        "NVIDIA-H200",
        143771,
        (9, 0),
    ),
    "CoreWeave with an underscore (docs)": (
        {"gpu.nvidia.com/model": "A100_NVLINK_80GB"},
        8,
        "NVIDIA-A100-SXM4-80GB",
        81920,
        (8, 0),
    ),
    "GKE's word for the small A100 (docs)": (
        {f"{GKE}accelerator": "nvidia-tesla-a100"},
        8,
        "NVIDIA-A100-SXM4-40GB",
        40536,
        (8, 0),
    ),
    "AKS tells the instance type alone (docs)": (
        {
            "kubernetes.azure.com/accelerator": "nvidia",
            "node.kubernetes.io/instance-type": "Standard_NC48ads_A100_v4",
        },
        2,
        "NVIDIA-A100-80GB-PCIe",
        81920,
        (8, 0),
    ),
    "a managed node group of EKS, deprecated label (docs)": (
        {"beta.kubernetes.io/instance-type": "g5.12xlarge"},
        4,
        "NVIDIA-A10G",
        22731,
        (8, 6),
    ),
    "the instance type tells which A100 a short name means": (
        {f"{KARPENTER}name": "a100", "node.kubernetes.io/instance-type": "p4de.24xlarge"},
        8,
        "NVIDIA-A100-SXM4-80GB",
        81920,
        (8, 0),
    ),
    "feature discovery before the instance type": (
        gfd("NVIDIA-A10G", 23028, 1) | {"node.kubernetes.io/instance-type": "g5.xlarge"},
        1,
        "NVIDIA-A10G",
        23028,
        (8, 6),
    ),
    "an instance type that nobody knows says nothing": (
        gfd("NVIDIA-L4", 23034, 3) | {"node.kubernetes.io/instance-type": "bare-metal.3"},
        3,
        "NVIDIA-L4",
        23034,
        (8, 9),
    ),
    "an unknown card with every label": (
        gfd("NVIDIA-Future-9000", 300000, 2, compute_major="13", compute_minor="1"),
        2,
        "NVIDIA-Future-9000",
        300000,
        (13, 1),
    ),
}


@pytest.mark.parametrize(
    ("labels", "total", "product", "mib", "capability"), WHOLE.values(), ids=WHOLE.keys()
)
def test_whole_gpus_are_usable(
    labels: dict[str, str], total: int, product: str, mib: int, capability: tuple[int, int]
) -> None:
    found = only(labels, {NV: str(total)})
    assert (found.product, found.memory_bytes, found.compute_capability) == (product, mib * MIB, capability)
    assert (found.vendor, found.resource_name, found.total) == ("NVIDIA", NV, total)
    assert (found.sharing.value, found.usable, found.reason) == ("None", True, "")


H100 = ("NVIDIA-H100-80GB-HBM3", 81559)
SHARED: dict[str, tuple[dict[str, str], dict[str, str], str, str]] = {
    "time-slicing, renamed (live)": (
        gfd("Tesla-T4", 15360, 1, replicas="4") | {f"{NV}.sharing-strategy": "time-slicing"},
        {NV: "0", f"{NV}.shared": "4"},
        "TimeSlicing",
        "sharing-strategy",
    ),
    "time-slicing, not renamed": (
        gfd("Tesla-T4-SHARED", 15360, 1, replicas="4") | {f"{NV}.sharing-strategy": "time-slicing"},
        {NV: "4"},
        "TimeSlicing",
        "sharing-strategy",
    ),
    "time-slicing before the strategy label existed": (
        gfd("Tesla-T4-SHARED", 15360, 1, replicas="4"),
        {NV: "4"},
        "TimeSlicing",
        "gpu.product",
    ),
    "time-slicing told by replicas alone": (
        gfd(*H100, 1, replicas="2"),
        {NV: "2"},
        "TimeSlicing",
        "gpu.replicas",
    ),
    "MPS": (
        gfd(*H100, 1, replicas="4") | {f"{NV}.sharing-strategy": "mps"},
        {NV: "4"},
        "MPS",
        "sharing-strategy",
    ),
    "GKE sharing": (
        {f"{GKE}accelerator": "nvidia-l4", f"{GKE}gpu-sharing-strategy": "time-sharing"},
        {NV: "2"},
        "TimeSlicing",
        "gpu-sharing-strategy",
    ),
    "a vGPU (live)": (
        gfd("NVIDIA-A16-4Q", 4096, 1) | {"nvidia.com/vgpu.present": "true"},
        {NV: "1"},
        "Unknown",
        "nvidia.com/vgpu.present=true",
    ),
    "Karpenter's fraction of an L4 (docs)": (
        {f"{KARPENTER}name": "l4", f"{KARPENTER}memory": "2861", f"{KARPENTER}count": "0"},
        {"cpu": "2"},
        "Unknown",
        f"{KARPENTER}count=0: a fraction of a GPU",
    ),
    "a sixth of an A10 on AKS (docs)": (
        {"node.kubernetes.io/instance-type": "Standard_NV6ads_A10_v5"},
        {NV: "1"},
        "Unknown",
        "instance-type=Standard_NV6ads_A10_v5: a fraction of a NVIDIA-A10",
    ),
    "more than any machine holds": (gfd(*H100, 640), {NV: "640"}, "Unknown", "no machine has so many"),
    "a strategy nobody knows": (
        gfd(*H100) | {f"{NV}.sharing-strategy": "telepathy"},
        {NV: "1"},
        "Unknown",
        "telepathy",
    ),
}


@pytest.mark.parametrize(("labels", "allocatable", "sharing", "named"), SHARED.values(), ids=SHARED.keys())
def test_shared_gpus_are_told_apart_and_refused(
    labels: dict[str, str], allocatable: dict[str, str], sharing: str, named: str
) -> None:
    found = only(labels, allocatable)
    assert (found.sharing.value, found.usable) == (sharing, False)
    assert named in found.reason


@pytest.mark.parametrize(
    ("annotations", "extra"),
    [({"hami.io/node-nvidia-register": "GPU-1,10,"}, {}), ({}, {"nvidia.com/gpumem": "819200"})],
    ids=["annotation", "resource"],
)
def test_hami_counts_virtual_gpus(annotations: dict[str, str], extra: dict[str, str]) -> None:
    found = only(gfd(*H100, 8), {NV: "80", **extra}, annotations)
    assert (found.sharing.value, found.usable) == ("HAMi", False)
    assert "HAMi" in found.reason


OTHERS: dict[str, tuple[dict[str, str], str, str, int, str]] = {
    "MI300X (docs)": (
        {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"},
        "amd.com/gpu",
        "AMD",
        192 << 30,
        "Unknown",
    ),
    "MI300X unpartitioned, beta labels": (
        {
            "beta.amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM",
            "beta.amd.com/gpu.vram": "192G",
            "beta.amd.com/gpu.compute-memory-partition": "spx_nps1",
        },
        "amd.com/gpu",
        "AMD",
        192 << 30,
        "None",
    ),
    "MI210, old labels that count (docs)": (
        {"beta.amd.com/gpu.product-name.AMD_Instinct_MI210": "8", "beta.amd.com/gpu.vram.64G": "8"},
        "amd.com/gpu",
        "AMD",
        64 << 30,
        "Unknown",
    ),
    "MI300X by its name alone": (
        {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"},
        "amd.com/gpu",
        "AMD",
        192 << 30,
        "Unknown",
    ),
    "MI300X in parts, a resource of their own": (
        {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "24G"},
        "amd.com/cpx_nps4",
        "AMD",
        24 << 30,
        "Unknown",
    ),
    "Karpenter's Radeon (docs)": (
        {f"{KARPENTER}manufacturer": "amd", f"{KARPENTER}name": "radeon-pro-v520"},
        "amd.com/gpu",
        "AMD",
        8 << 30,
        "Unknown",
    ),
    "Intel": ({}, "gpu.intel.com/xe", "Intel", 0, "Unknown"),
    "Intel Flex by its name (docs)": (
        {"gpu.intel.com/product": "Flex_170"},
        "gpu.intel.com/i915",
        "Intel",
        16 << 30,
        "Unknown",
    ),
    "Intel tells the sum over its cards (docs)": (
        {"gpu.intel.com/memory.max": str(8 * 128 << 30), "gpu.intel.com/device.count": "8"},
        "gpu.intel.com/i915",
        "Intel",
        128 << 30,
        "Unknown",
    ),
    "Gaudi": ({}, "habana.ai/gaudi", "Intel", 0, "Unknown"),
    "TPU": ({}, "google.com/tpu", "Google", 0, "Unknown"),
    "an unknown vendor": ({}, "example.com/gpu", "Unknown", 0, "Unknown"),
}


@pytest.mark.parametrize(
    ("labels", "resource", "vendor", "memory", "sharing"), OTHERS.values(), ids=OTHERS.keys()
)
def test_other_vendors_are_named_and_refused(
    labels: dict[str, str], resource: str, vendor: str, memory: int, sharing: str
) -> None:
    found = only(labels, {resource: "8"})
    assert (found.vendor, found.memory_bytes, found.total) == (vendor, memory, 8)
    assert (found.sharing.value, found.usable) == (sharing, False)
    assert resource in found.reason


CONTRADICTIONS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "no label at all": ({}, {NV: "8"}, "no label names the GPU product: expected nvidia.com/gpu.product"),
    "more than counted": (gfd(*H100, 8), {NV: "16"}, "nvidia.com/gpu.count=8"),
    "fewer than counted": (gfd(*H100, 8), {NV: "7"}, "nvidia.com/gpu.count=8"),
    "count is no number": (gfd(*H100, "eight"), {NV: "8"}, "nvidia.com/gpu.count=eight"),
    "memory in GiB": (gfd(H100[0], 80), {NV: "1"}, "nvidia.com/gpu.memory=80 contradicts"),
    "memory in bytes": (gfd(H100[0], 85520809984), {NV: "1"}, "nvidia.com/gpu.memory"),
    "memory of another card": (gfd(H100[0], 23034), {NV: "1"}, "nvidia.com/gpu.memory=23034 contradicts"),
    "memory is no number": (gfd(H100[0], "80Gi"), {NV: "1"}, "nvidia.com/gpu.memory='80Gi'"),
    "memory is negative": (gfd(H100[0], -1), {NV: "1"}, "nvidia.com/gpu.memory='-1'"),
    "memory is zero": (gfd(H100[0], 0), {NV: "1"}, "nvidia.com/gpu.memory='0'"),
    "memory absurd on an unknown card": (
        gfd("NVIDIA-X", 999999999),
        {NV: "1"},
        "nvidia.com/gpu.memory=999999999",
    ),
    "no memory, unknown card": (
        {f"{NV}.product": "NVIDIA-X"},
        {NV: "1"},
        "no label nvidia.com/gpu.memory, and product NVIDIA-X",
    ),
    "capability is no number": (
        gfd(*H100, 1, compute_major="nine", compute_minor="0"),
        {NV: "1"},
        "nvidia.com/gpu.compute.major='nine'",
    ),
    "capability without its second half": (
        gfd(*H100, 1, compute_major="9"),
        {NV: "1"},
        "nvidia.com/gpu.compute.minor",
    ),
    "replicas zero beside whole GPUs": (
        gfd(*H100, 1, replicas="0"),
        {NV: "1"},
        "nvidia.com/gpu.replicas='0'",
    ),
    "replicas is no number": (gfd(*H100, 1, replicas="many"), {NV: "1"}, "nvidia.com/gpu.replicas='many'"),
    "memory is the sum of the node's cards": (
        gfd("NVIDIA-L4", 4 * 23034, 4),
        {NV: "4"},
        "nvidia.com/gpu.memory=92136 contradicts",
    ),
    "family and capability of two cards": (
        gfd(*H100, 2, compute_major="7", compute_minor="5") | {f"{NV}.family": "hopper"},
        {NV: "2"},
        "nvidia.com/gpu.family=hopper contradicts",
    ),
    "half a GPU": (gfd(*H100, 1), {NV: "500m"}, "status.allocatable[nvidia.com/gpu] is 500m"),
    "an instance type with another number of GPUs": (
        {"node.kubernetes.io/instance-type": "p5.48xlarge"},
        {NV: "7"},
        "instance-type=p5.48xlarge (8 GPUs) but the node allocates 7",
    ),
    "labels without GPUs": (gfd(*H100, 8), {"cpu": "8"}, "device plugin does not run"),
    "negative allocatable": (gfd(*H100, 8), {NV: "-8"}, "status.allocatable[nvidia.com/gpu] is -8"),
    "allocatable is no quantity": (gfd(*H100, 8), {NV: "eight"}, "status.allocatable[nvidia.com/gpu]"),
    "EC2 memory that fits no such card": (
        {f"{KARPENTER}name": "h100", f"{KARPENTER}memory": "4096"},
        {NV: "1"},
        "instance-gpu-memory=4096 contradicts",
    ),
}


@pytest.mark.parametrize(
    ("labels", "allocatable", "told"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys()
)
def test_contradictions_are_refused_and_the_label_is_named(
    labels: dict[str, str], allocatable: dict[str, str], told: str
) -> None:
    found = only(labels, allocatable)
    assert not found.usable
    assert told in found.reason


def test_a_node_without_gpus_has_no_classes() -> None:
    assert classes({"kubernetes.io/os": "linux"}, {"cpu": "8", "example.com/fpga": "1"}) == ()


def test_five_kinds_on_one_node_are_five_classes() -> None:
    allocatable = {
        NV: "2",
        f"{NV}.shared": "4",
        "nvidia.com/mig-1g.5gb": "3",
        "amd.com/gpu": "1",
        "gpu.intel.com/xe": "1",
    }
    found = classes(gfd(*H100, 2), allocatable)
    assert sorted(gpu.resource_name for gpu in found) == sorted(allocatable)
    assert [gpu.resource_name for gpu in found if gpu.usable] == ["nvidia.com/mig-1g.5gb", NV]


LABEL_NAMES = st.sampled_from([
    f"{NV}.product", f"{NV}.memory", f"{NV}.count", f"{NV}.replicas", f"{NV}.sharing-strategy",
    f"{NV}.compute.major", f"{NV}.compute.minor", "nvidia.com/mig.strategy", f"{KARPENTER}name",
    f"{KARPENTER}memory", f"{KARPENTER}count", f"{KARPENTER}manufacturer", f"{GKE}accelerator",
    f"{GKE}gpu-partition-size", "amd.com/gpu.vram", "amd.com/gpu.product-name", "gpu.nvidia.com/model",
    "node.kubernetes.io/instance-type", f"{NV}.family", "nvidia.com/mig-1g.5gb.memory",
    "nvidia.com/mig-1g.5gb.product", "nvidia.com/vgpu.present", "gpu.intel.com/memory.max",
])  # fmt: skip
LABEL_VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "1",
            "0",
            "-1",
            "81559",
            "4864",
            "none",
            "mps",
            "NVIDIA-H100-80GB-HBM3",
            "t4",
            "192G",
            "٣",
            "amd",
            "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
            "1g.5gb",
            "g6f.large",
            "p5.48xlarge",
            "hopper",
            "true",
        ]
    ),
    st.text(max_size=12),
)
RESOURCES = st.sampled_from(
    [NV, f"{NV}.shared", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "nvidia.com/gpumem", "x/gpu"]
)


@given(
    st.dictionaries(LABEL_NAMES, LABEL_VALUES, max_size=8),
    st.dictionaries(RESOURCES, st.one_of(st.integers(-2, 99).map(str), st.text(max_size=4)), max_size=4),
)
def test_whatever_labels_say_it_is_usable_or_has_a_reason(
    labels: dict[str, str], allocatable: dict[str, str]
) -> None:
    for gpu in classes(labels, allocatable):
        assert gpu.usable == (not gpu.reason)
        if gpu.usable:
            assert gpu.memory_bytes > 0
            assert gpu.total > 0
            assert gpu.sharing.value in ("None", "MIG")


@pytest.mark.parametrize(
    ("wish", "product", "expected"),
    [
        ("H100", "NVIDIA-H100-80GB-HBM3", True),
        ("h100", "NVIDIA-H100-80GB-HBM3", True),
        ("NVIDIA-L4", "NVIDIA-L4", True),
        ("A100-80GB", "NVIDIA-A100-SXM4-80GB", True),
        ("A100-80GB", "NVIDIA-A100-SXM4-40GB", False),
        ("L4", "NVIDIA-L40S", False),
        ("RTX 4090", "NVIDIA-GeForce-RTX-4090", True),
        ("-", "NVIDIA-L4", False),
    ],
)
def test_products_are_named_part_by_part(wish: str, product: str, expected: bool) -> None:
    assert products.names(wish, product) is expected
