"""Devices of DRA as GPUs of their nodes: which kinds, how many, and who holds them.

Counting devices is not counting GPUs: one GPU can be announced whole and in every way it could be cut. What
draws on the same counters is one GPU, held as soon as any part of it is. Free is what untainted devices no
claim holds; a pool that is not seen whole offers nothing, because what is missing may be what is taken.

GPUs get a resource name of the planner's own, `<DeviceClass>/<product>`, so that everything that counts
extended resources counts them too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from plimsoll.inventory import mig
from plimsoll.inventory.capacity import add, held_on, subtract
from plimsoll.inventory.dra import NVIDIA_DRIVER, ClaimView, Device, DeviceId, SliceView
from plimsoll.inventory.gpu_class import Allocation, GPUClass, Sharing
from plimsoll.inventory.nodes import shared
from plimsoll.inventory.nvidia import GPU
from plimsoll.inventory.views import NodeView, PodView, Resources

WHOLE, SLICE = "gpu", "mig"
CLASSES = {WHOLE: NVIDIA_DRIVER, SLICE: "mig.nvidia.com", "vfio": "vfio.gpu.nvidia.com"}
"""DeviceClasses of NVIDIA's driver by the type of device they hold."""
VENDORS = {NVIDIA_DRIVER: "NVIDIA", "gpu.amd.com": "AMD", "gpu.intel.com": "Intel"}
DYNAMIC = "dynamic"
"""In place of a profile: every way to cut a GPU on demand."""
PLAIN_PRODUCT = re.compile(r"[A-Za-z0-9 ._+()/-]{1,64}")
LEAST_BYTES = 1 << 30

Unit = tuple[str, ...]
"""What can be held once: a device, or all that is cut from one GPU."""


@dataclass(slots=True)
class _OnNode:
    """Devices of one node."""

    gpus: list[GPUClass] = field(default_factory=list)
    units: dict[DeviceId, tuple[Unit, str]] = field(default_factory=dict)
    """Unit and resource of every device that may be held."""


class DevicePools:
    """Devices of all slices, sorted by node. Made anew when a slice changes, not for every plan."""

    def __init__(self, slices: Iterable[SliceView]) -> None:
        pools: dict[tuple[str, str], list[SliceView]] = {}
        for one in sorted(slices, key=lambda view: view.name):
            pools.setdefault((one.driver, one.pool), []).append(one)
        by_node: dict[str, list[tuple[Device, str]]] = {}
        for parts in pools.values():
            newest = max(part.generation for part in parts)
            current = [part for part in parts if part.generation == newest]
            problem = _incomplete(current)
            for device in _countable(device for part in current for device in part.devices):
                by_node.setdefault(device.node, []).append((device, problem))
        by_node.pop("", None)
        self._nodes = {node: _on_node(devices) for node, devices in by_node.items()}
        self._where = {device: name for name, node in self._nodes.items() for device in node.units}

    def count(
        self, nodes: Iterable[NodeView], pods: Sequence[PodView], claims: Iterable[ClaimView]
    ) -> tuple[tuple[NodeView, ...], dict[str, PodView]]:
        """The nodes with their devices as GPUs, and the pods that hold some, by uid, with what they hold. A
        claim that no pod of the node speaks for makes the node's allocatable smaller."""
        given = {node.name: node for node in nodes}
        twice = {name for name in self._nodes if name in given and given[name].allocatable.extended.get(GPU)}
        by_pod, alone = self._held(pods, claims, twice)
        counted = tuple(
            self._with_devices(node, alone.get(node.name, {}), offered_twice=node.name in twice)
            if node.name in self._nodes
            else node
            for node in given.values()
        )
        holders = {pod.uid: _holding(pod, by_pod[pod.uid]) for pod in pods if pod.uid in by_pod}
        return counted, holders

    def _held(
        self, pods: Iterable[PodView], claims: Iterable[ClaimView], twice: set[str]
    ) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
        """Amounts of resources by pod, and by node those of claims without a pod."""
        node_of = {pod.uid: held_on(pod) for pod in pods}
        by_pod: dict[str, Counter[str]] = {}
        alone: dict[str, Counter[str]] = {}
        seen: set[Unit] = set()
        for claim in sorted(claims, key=lambda view: (view.namespace, view.name)):
            if claim.owner and claim.owner not in node_of:
                # Its pod is counted where it was promised until it shows, and gone when it does not.
                continue
            for device in claim.devices:
                name = self._where.get(device, "")
                unit, resource = self._nodes[name].units[device] if name else ((), "")
                if not unit or unit in seen:
                    continue
                seen.add(unit)
                pod = min((uid for uid in claim.pods if node_of.get(uid) == name), default="")
                holder = by_pod.setdefault(pod, Counter()) if pod else alone.setdefault(name, Counter())
                holder[GPU if name in twice else resource] += 1
        return by_pod, alone

    def _with_devices(self, node: NodeView, held: Mapping[str, int], *, offered_twice: bool) -> NodeView:
        found = self._nodes[node.name].gpus
        if offered_twice:
            reason = f"the node offers the same GPUs as {GPU}: only one of device plugin and DRA may run"
            found = [replace(gpu, usable=False, reason=gpu.reason or reason) for gpu in found]
        # Labels promise GPUs that no device plugin offers: these are the ones.
        labelled = [gpu for gpu in node.gpus if gpu.total or gpu.vendor != "NVIDIA"]
        offered = Resources(extended={gpu.resource_name: gpu.total for gpu in found})
        free = subtract(add(node.allocatable, offered), Resources(extended=dict(held)))
        return replace(node, allocatable=free, gpus=shared((*labelled, *found)))


def _holding(pod: PodView, held: Mapping[str, int]) -> PodView:
    """What was given, in place of what was asked for."""
    asked = pod.requests.extended.items()
    extended = {name: amount for name, amount in asked if name not in pod.devices} | dict(held)
    return replace(pod, requests=replace(pod.requests, extended=extended))


def _incomplete(parts: Sequence[SliceView]) -> str:
    first = parts[0]
    if len(parts) == first.slices:
        return ""
    return (
        f"pool {first.pool} of driver {first.driver} shows {len(parts)} of {first.slices} ResourceSlices of "
        f"generation {first.generation}: what is free is not known"
    )


def _countable(devices: Iterable[Device]) -> list[Device]:
    """Without whole GPUs that are cut already: their slices are announced beside them."""
    found = list(devices)
    cut = {device.parent_uuid for device in found if device.kind == SLICE and not device.counters}
    return [device for device in found if device.kind != WHOLE or not device.uuid or device.uuid not in cut]


def _on_node(devices: Sequence[tuple[Device, str]]) -> _OnNode:
    kinds: dict[tuple[str, str, str], list[tuple[Device, str]]] = {}
    for device, problem in devices:
        dynamic = device.kind == SLICE and bool(device.counters)
        key = (device.id[0], device.kind, DYNAMIC if dynamic else _product(device))
        kinds.setdefault(key, []).append((device, problem))
    node = _OnNode()
    whole: dict[Unit, str] = {}
    for key in sorted(kinds):
        of_kind = [device for device, _ in kinds[key]]
        problem = next((problem for _, problem in kinds[key] if problem), "")
        dynamic = key[-1] == DYNAMIC
        gpu = _gpu_class(of_kind, problem, dynamic=dynamic)
        node.gpus.append(gpu)
        for device in of_kind:
            if not device.taint and not dynamic:
                node.units[device.id] = (_unit(device), gpu.resource_name)
                whole[_unit(device)] = gpu.resource_name
    for device, _ in devices:
        # A slice that was cut on demand holds the GPU that it was cut from.
        if device.id not in node.units and (resource := whole.get(_unit(device))):
            node.units[device.id] = (_unit(device), resource)
    return node


def _unit(device: Device) -> Unit:
    return (*device.id[:2], "counters", *sorted(device.counters)) if device.counters else device.id


def _product(device: Device) -> str:
    """As labels write it."""
    name = device.product.replace(" ", "-")
    return f"{name}{mig.IN_PRODUCT}{device.profile}" if device.kind == SLICE and device.profile else name


def _gpu_class(devices: Sequence[Device], problem: str, *, dynamic: bool) -> GPUClass:
    first, driver = devices[0], devices[0].id[0]
    card = first.product.replace(" ", "-")
    product = f"{card}{mig.IN_PRODUCT}{DYNAMIC}" if dynamic else _product(first)
    free_of_taints = [device for device in devices if not device.taint]
    capabilities = [device.compute_capability for device in devices if device.compute_capability]
    reason = problem or _unusable(free_of_taints or devices, dynamic=dynamic)
    if not free_of_taints:
        reason = reason or f"{driver}: all {len(devices)} devices are tainted {first.taint}"
    holder = CLASSES.get(first.kind, driver) if driver == NVIDIA_DRIVER else driver
    return GPUClass(
        vendor=VENDORS.get(driver, "Unknown"),
        product=product,
        memory_bytes=0 if dynamic else min(device.memory_bytes for device in devices),
        compute_capability=min(capabilities, default=None),
        resource_name=f"{holder}/{product}",
        total=0 if dynamic else len({_unit(device) for device in free_of_taints}),
        sharing=_sharing(first, devices),
        usable=not reason,
        reason=reason,
        allocation=Allocation.DRA,
    )


def _sharing(first: Device, devices: Sequence[Device]) -> Sharing:
    if first.id[0] != NVIDIA_DRIVER or any(device.shared for device in devices):
        return Sharing.UNKNOWN
    return {WHOLE: Sharing.NONE, SLICE: Sharing.MIG}.get(first.kind, Sharing.UNKNOWN)


def _unusable(devices: Sequence[Device], *, dynamic: bool) -> str:
    """Why devices of one kind cannot be used, the attribute named; empty when they can."""
    first, (driver, _, name) = devices[0], devices[0].id
    if driver != NVIDIA_DRIVER:
        return f"{driver}: the engine runs on NVIDIA GPUs ({NVIDIA_DRIVER}) only"
    if first.kind not in (WHOLE, SLICE):
        return f"device {name} has attribute type={first.kind!r}: expected {WHOLE} or {SLICE}"
    if dynamic:
        return f"{len(devices)} MIG slices that could be cut on demand share the counters of their GPUs"
    if shared_one := next((device.id[2] for device in devices if device.shared), ""):
        return f"device {shared_one} has allowMultipleAllocations: only exclusive GPUs are used"
    if not PLAIN_PRODUCT.fullmatch(first.product):
        return f"device {name} has attribute productName={first.product!r}: expected the GPU's name"
    memory = min(device.memory_bytes for device in devices)
    if memory < LEAST_BYTES:
        return f"device {name} has capacity memory of {memory} bytes: expected the GPU's memory"
    if first.kind == SLICE:
        profile = mig.profile(first.profile)
        if profile is None or profile.part or not profile.agrees(memory):
            return f"device {name} has attribute profile={first.profile!r} and {memory} bytes of memory"
    return ""
