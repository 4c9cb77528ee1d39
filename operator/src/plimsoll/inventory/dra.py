"""Dynamic resource allocation: ResourceSlices and ResourceClaims as the views that counting reads.

A driver publishes its devices in slices, the scheduler writes what it gave to whom into claims. The format is
resource.k8s.io/v1; attributes and capacities are those of NVIDIA's driver (`gpu.nvidia.com`), their names
without a domain. Nothing raises: what cannot be read is left empty, and `device_pools` says what it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from plimsoll.inventory.objects import Object, part, parts
from plimsoll.inventory.quantity import QuantityError, at_most

NVIDIA_DRIVER = "gpu.nvidia.com"
KEEPS_AWAY = ("NoSchedule", "NoExecute")
_PRODUCT = ("productName", "product", "model")
_MEMORY = ("memory", "vram")

DeviceId = tuple[str, str, str]
"""Driver, pool and name: what a claim calls a device by."""


@dataclass(frozen=True, slots=True)
class Device:
    """One entry of a slice. It may be a GPU, a part of one, or one of several ways to cut the same GPU."""

    id: DeviceId
    node: str
    """Empty for devices that no single node has."""
    kind: str
    """NVIDIA's: gpu, mig or vfio; empty where nothing says."""
    product: str
    """As the driver writes it, with blanks."""
    profile: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None
    uuid: str
    parent_uuid: str
    taint: str
    """The first that keeps new pods away, as key:effect."""
    counters: frozenset[str]
    """Counter sets that it draws on: devices with a common one are cut from the same GPU."""
    shared: bool
    """Several claims may have it at once."""


@dataclass(frozen=True, slots=True)
class SliceView:
    """A part of a pool. A pool is whole when all slices of its newest generation are there."""

    name: str
    driver: str
    pool: str
    generation: int
    slices: int
    """Of the pool in this generation."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A claim that holds devices."""

    namespace: str
    name: str
    devices: tuple[DeviceId, ...]
    owner: str
    """UID of the pod that it was made for and goes with; empty for claims that somebody made."""
    pods: frozenset[str]
    """UIDs of the pods that it is reserved for, the owner included."""


def slice_view(obj: Object) -> SliceView | None:
    """The view of a ResourceSlice; None for drivers of other things than GPUs."""
    meta, spec = part(obj, "metadata"), part(obj, "spec")
    pool, driver = part(spec, "pool"), str(spec.get("driver") or "")
    if not _of_gpus(driver):
        return None
    name, node = str(pool.get("name") or ""), str(spec.get("nodeName") or "")
    return SliceView(
        name=str(meta.get("name") or ""),
        driver=driver,
        pool=name,
        generation=_number(pool.get("generation")),
        slices=_number(pool.get("resourceSliceCount")),
        devices=tuple(_device(entry, driver, name, node) for entry in parts(spec, "devices")),
    )


def claim_view(obj: Object) -> ClaimView | None:
    """The view of a ResourceClaim; None when it holds nothing. Access for administrators holds nothing."""
    meta, status = part(obj, "metadata"), part(obj, "status")
    results = parts(part(part(status, "allocation"), "devices"), "results")
    devices = tuple(
        (str(result.get("driver")), str(result.get("pool")), str(result.get("device")))
        for result in results
        if not result.get("adminAccess")
    )
    if not devices:
        return None
    owners = (ref for ref in parts(meta, "ownerReferences") if ref.get("kind") == "Pod")
    owner = next((str(ref.get("uid") or "") for ref in owners), "")
    reserved = {str(pod["uid"]) for pod in parts(status, "reservedFor") if pod.get("uid")}
    return ClaimView(
        namespace=str(meta.get("namespace") or "default"),
        name=str(meta.get("name") or ""),
        devices=devices,
        owner=owner,
        pods=frozenset({owner, *reserved} - {""}),
    )


def _of_gpus(driver: str) -> bool:
    return re.search(r"gpu(?![a-z])", driver.lower()) is not None


def _device(entry: Object, driver: str, pool: str, node: str) -> Device:
    attributes = {_plain(str(key)): _value(value) for key, value in part(entry, "attributes").items()}
    capacity = {_plain(str(key)): value for key, value in part(entry, "capacity").items()}
    return Device(
        id=(driver, pool, str(entry.get("name") or "")),
        node=node or str(entry.get("nodeName") or ""),
        kind=attributes.get("type", ""),
        product=next((attributes[name] for name in _PRODUCT if attributes.get(name)), ""),
        profile=attributes.get("profile", ""),
        memory_bytes=next((_bytes(capacity[name]) for name in _MEMORY if name in capacity), 0),
        compute_capability=_version(attributes.get("cudaComputeCapability", "")),
        uuid=attributes.get("uuid", ""),
        parent_uuid=attributes.get("parentUUID", ""),
        taint=next(_taints(entry), ""),
        counters=frozenset(str(consumed.get("counterSet")) for consumed in parts(entry, "consumesCounters")),
        shared=bool(entry.get("allowMultipleAllocations")),
    )


def _plain(name: str) -> str:
    """Drivers may write their own domain before a name or leave it out."""
    return name.rpartition("/")[2]


def _value(value: object) -> str:
    """An attribute is one of string, version, int and bool."""
    found = next(iter(value.values()), "") if isinstance(value, Mapping) else ""
    return str(found) if isinstance(found, str | int) else ""


def _bytes(value: object) -> int:
    try:
        return max(0, at_most(value.get("value") if isinstance(value, Mapping) else value))
    except QuantityError:
        return 0


def _version(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})(?:\.[0-9]+)?", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _taints(entry: Object) -> Iterator[str]:
    for taint in parts(entry, "taints"):
        if taint.get("effect") in KEEPS_AWAY:
            yield f"{taint.get('key')}:{taint['effect']}"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
