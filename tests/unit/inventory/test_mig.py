"""MIG slices are GPUs of their own kind, never whole ones, and used only when nothing shares them further."""

from __future__ import annotations

import pytest
from tests.unit.inventory.test_labels import GKE, NV, classes, gfd, only

from plimsoll.inventory import mig

MIB = 1 << 20
A100 = "NVIDIA-A100-SXM4-40GB"
SLICE = "nvidia.com/mig-1g.5gb"


def single(profile: str = "1g.5gb", memory: int = 4864, count: int = 7, **more: str) -> dict[str, str]:
    """Labels of a node whose every GPU is cut into slices of one profile."""
    return gfd(f"{A100}-MIG-{profile}", memory, count, **more) | {"nvidia.com/mig.strategy": "single"}


def mixed(**more: str) -> dict[str, str]:
    """Labels of a whole A100, and of its slices; `more` by the last part of the slice's label."""
    labels = gfd(A100, 40960, 1, replicas="0", compute_major="8", compute_minor="0")
    labels |= {f"{SLICE}.product": f"{A100}-MIG-1g.5gb", f"{SLICE}.memory": "4864", f"{SLICE}.count": "7"}
    return labels | {f"{SLICE}.{name.replace('_', '.')}": value for name, value in more.items()}


def test_strategy_single_offers_slices_as_gpus() -> None:
    found = only(single(compute_major="8", compute_minor="0", replicas="1"), {NV: "7"})
    assert (found.product, found.memory_bytes) == (f"{A100}-MIG-1g.5gb", 4864 * MIB)
    assert (found.resource_name, found.total, found.sharing.value) == (NV, 7, "MIG")
    assert (found.compute_capability, found.usable, found.reason) == ((8, 0), True, "")


def test_strategy_mixed_offers_each_profile_and_not_the_parent() -> None:
    """As on a live A100: allocatable nvidia.com/gpu is 0, gpu.count 1 and gpu.replicas 0."""
    two = "nvidia.com/mig-2g.10gb"
    labels = mixed(count="2") | {f"{two}.memory": "9856"}
    found = classes(labels, {NV: "0", SLICE: "2", two: "1", "nvidia.com/mig-3g.20gb": "0"})
    assert [(gpu.resource_name, gpu.product, gpu.total, gpu.memory_bytes // MIB) for gpu in found] == [
        (SLICE, f"{A100}-MIG-1g.5gb", 2, 4864),
        (two, f"{A100}-MIG-2g.10gb", 1, 9856),
    ]
    assert {(gpu.sharing.value, gpu.usable, gpu.compute_capability) for gpu in found} == {
        ("MIG", True, (8, 0))
    }


def test_a_cut_gpu_beside_a_whole_one_are_two_classes() -> None:
    labels = mixed() | gfd(A100, 40960, 1, replicas="1")
    found = classes(labels, {NV: "1", SLICE: "7"})
    assert [(gpu.resource_name, gpu.sharing.value, gpu.usable) for gpu in found] == [
        (SLICE, "MIG", True),
        (NV, "None", True),
    ]


def test_a_partition_of_a_cloud_has_what_its_profile_has_at_the_least() -> None:
    labels = {f"{GKE}accelerator": "nvidia-tesla-a100", f"{GKE}gpu-partition-size": "1g.5gb"}
    found = only(labels, {NV: "7"})
    assert (found.sharing.value, found.usable) == ("MIG", True)
    assert found.product.endswith("-MIG-1g.5gb")
    assert found.memory_bytes == 4_750_000_000


REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "layout not alike": (gfd(f"{A100}-MIG-INVALID", 0, 0), NV, "MIG-INVALID"),
    "no profile": (single("tiny"), NV, "tiny is no MIG profile"),
    "time-sliced, single": (
        single("1g.5gb-SHARED", replicas="4") | {f"{NV}.sharing-strategy": "time-slicing"},
        NV,
        "gpu.product=NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED",
    ),
    "strategy label alone, single": (
        single() | {f"{NV}.sharing-strategy": "mps"},
        NV,
        "sharing-strategy='mps'",
    ),
    "replicas alone, single": (single(replicas="2"), NV, "gpu.replicas='2'"),
    "count of another number": (single(count=6), NV, "nvidia.com/gpu.count=6"),
    "memory of the whole card": (single(memory=40960), NV, "nvidia.com/gpu.memory='40960' contradicts"),
    "memory is no number": (mixed(memory="5Gi"), SLICE, f"{SLICE}.memory='5Gi' contradicts"),
    "time-sliced, mixed": (mixed(replicas="2"), SLICE, f"{SLICE}.replicas='2'"),
    "renamed when time-sliced": (mixed(), f"{SLICE}.shared", "is a shared MIG slice"),
    "a compute instance": (
        gfd(A100, 40960, replicas="0"),
        "nvidia.com/mig-1c.3g.20gb",
        "shares the memory of its MIG slice",
    ),
    "a compute instance by its labels": (mixed(slices_gi="3", slices_ci="1"), SLICE, "slices.ci=1"),
    "no product anywhere": ({}, SLICE, f"expected {SLICE}.product"),
}


@pytest.mark.parametrize(("labels", "resource", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_slice_that_is_shared_or_contradicts_itself_is_refused(
    labels: dict[str, str], resource: str, named: str
) -> None:
    found = only(labels, {resource: "7"})
    assert (found.sharing.value, found.usable) == ("MIG", False)
    assert named in found.reason


@pytest.mark.parametrize(
    ("name", "mib"),
    # What `nvidia-smi mig -lgip` prints for A100, H100 and H200, and feature discovery in its labels.
    [
        ("1g.5gb", 4864),
        ("2g.10gb", 9856),
        ("7g.40gb", 40192),
        ("1g.10gb", 9728),
        ("1g.10gb+me", 9728),
        ("1g.10gb.me", 9728),
        ("1g.18gb", 16384),
        ("7g.80gb", 80640),
    ],
)
def test_profiles_and_the_memory_of_their_slices(name: str, mib: int) -> None:
    profile = mig.profile(name)
    assert profile is not None
    assert profile.agrees(mib * MIB)
    assert profile.least_bytes <= mib * MIB


@pytest.mark.parametrize("name", ["", "1g", "8g.80gb", "0g.5gb", "1g.0gb", "1gb.5g", "9c.1g.5gb", "all"])
def test_what_is_no_profile(name: str) -> None:
    assert mig.profile(name) is None
