"""What a kind of GPU on a node is: the answer of the label readers, the question of the planner."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Sharing(StrEnum):
    """How the units of a resource relate to whole GPUs."""

    NONE = "None"
    TIME_SLICING = "TimeSlicing"
    MPS = "MPS"
    MIG = "MIG"
    HAMI = "HAMi"
    UNKNOWN = "Unknown"


class Allocation(StrEnum):
    """Who hands GPUs to pods."""

    DEVICE_PLUGIN = "DevicePlugin"
    """The pod asks for an extended resource."""
    DRA = "DRA"
    """The pod has a ResourceClaim."""


@dataclass(frozen=True, slots=True)
class GPUClass:
    """GPUs of one kind on one node."""

    vendor: str
    product: str
    memory_bytes: int
    """Of one GPU (of one slice under MIG), as NVML would tell it; 0 when unknown."""
    compute_capability: tuple[int, int] | None
    resource_name: str
    """Extended resource; `<DeviceClass>/<product>` where pods claim devices."""
    total: int
    """Units of `resource_name` that the node allocates."""
    sharing: Sharing
    usable: bool
    """Exclusive (a whole GPU, or a MIG slice with memory of its own), and everything the planner needs is
    known."""
    reason: str = ""
    """Why it is not usable, with the label named; empty when it is."""
    allocation: Allocation = Allocation.DEVICE_PLUGIN
