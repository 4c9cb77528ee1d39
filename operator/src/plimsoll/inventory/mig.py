"""MIG slices of NVIDIA GPUs: GPUs in their own right, with a memory of their own.

Strategy `single` offers the slices as `nvidia.com/gpu` and describes the slice in the node's GPU labels.
Strategy `mixed` offers each profile under its own resource, `nvidia.com/mig-1g.5gb`, with labels of the same
prefix. A slice is usable when nothing shares it further: compute instances (`1c.3g.20gb`) share the memory of
their slice, and slices can be time-sliced like whole GPUs. Profiles and names: NVIDIA's MIG user guide, and
k8s-device-plugin `internal/lm` and `internal/resource`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RESOURCE = re.compile(r"nvidia\.com/mig-[a-z0-9.+_-]+")
RESOURCE_PREFIX = "nvidia.com/mig-"
IN_PRODUCT = "-MIG-"
INVALID = "INVALID"
"""Instead of a profile, where the layout does not meet the strategy."""
SHARED_PRODUCT, SHARED_RESOURCE = "-SHARED", ".shared"
GIGA = 10**9
MIB = 1 << 20
TOLERANCE_PERCENT = 25
"""A profile is named by rounded gigabytes: 1g.5gb has 4864 MiB, 1g.18gb has 16384."""
LEAST_PERCENT = 95
"""Of the profile's decimal gigabytes, every slice has at least this much (1g.18gb of an H200 has 95.4 %)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of slice: `3g.20gb`, `1g.10gb+me`; `1c.3g.20gb` is a part of one."""

    name: str
    gigabytes: int
    part: bool
    """A compute instance that shares the memory of its slice with others."""

    @property
    def least_bytes(self) -> int:
        """What a slice of this profile has at the least, where no label tells more."""
        return self.gigabytes * GIGA * LEAST_PERCENT // 100

    def agrees(self, memory: int) -> bool:
        """Whether a slice of this profile can have so many bytes."""
        nominal = self.gigabytes * GIGA
        return abs(memory - nominal) * 100 <= TOLERANCE_PERCENT * nominal


def profile(name: str) -> Profile | None:
    """The profile of that name; the attributes after it (`+me`, `.me.all`) change engines, not memory."""
    found = re.fullmatch(r"(?:([1-7])c\.)?[1-7]g\.([1-9][0-9]{0,3})gb(?:[.+-][a-z0-9.+-]+)?", name)
    return Profile(name, int(found.group(2)), part=found.group(1) is not None) if found else None


@dataclass(frozen=True, slots=True)
class Slice:
    """What one resource of slices is; `problem` says why its units cannot be used."""

    product: str
    memory_bytes: int
    problem: str


def of_single(labels: Mapping[str, str], total: int) -> Slice:
    """`nvidia.com/gpu` under strategy single."""
    product = labels["nvidia.com/gpu.product"]
    name = product.partition(IN_PRODUCT)[2].removesuffix(SHARED_PRODUCT)
    return _slice(labels, "nvidia.com/gpu", product, name, total)


def of_mixed(labels: Mapping[str, str], resource: str, total: int, card: str) -> Slice:
    """A resource of its own under strategy mixed. `card`: product of the whole GPU, where it is known."""
    name = resource.removeprefix(RESOURCE_PREFIX)
    product = labels.get(f"{resource}.product") or (card and f"{card}{IN_PRODUCT}{name}")
    return _slice(labels, resource, product, name, total)


def of_partition(card: str, name: str, label: str) -> Slice:
    """`nvidia.com/gpu` on a node that a cloud has cut into slices of one profile, as `label` says; no label
    tells the slice's memory."""
    return _slice({}, "", f"{card}{IN_PRODUCT}{name}", name, 0, named_by=label)


def _slice(
    labels: Mapping[str, str], prefix: str, product: str, name: str, total: int, named_by: str = ""
) -> Slice:
    source = named_by or (f"label {prefix}.product={product}" if prefix == "nvidia.com/gpu" else prefix)
    if name == INVALID:
        return Slice(product, 0, f"{source}: the GPUs are not cut alike, as mig.strategy single demands")
    kind = profile(name.removesuffix(SHARED_RESOURCE))
    if kind is None:
        return Slice(product, 0, f"{source}: {name} is no MIG profile: expected one such as 1g.5gb")
    text = labels.get(f"{prefix}.memory", "")
    memory = int(text) * MIB if re.fullmatch(r"[0-9]{1,7}", text) else kind.least_bytes
    problem = _shared(labels, prefix, product, name, kind, source)
    if not problem and text and not (re.fullmatch(r"[0-9]{1,7}", text) and kind.agrees(memory)):
        problem = f"label {prefix}.memory={text!r} contradicts the profile {kind.name}: expected its MiB"
    count = labels.get(f"{prefix}.count", str(total))
    if not problem and count != str(total):
        problem = f"label {prefix}.count={count} but the node allocates {total} of {prefix}"
    if not problem and not product:
        problem = f"no label names the product: expected {prefix}.product"
    return Slice(product, memory, problem)


def _shared(
    labels: Mapping[str, str], prefix: str, product: str, name: str, kind: Profile, source: str
) -> str:
    """Why more than one tenant uses a slice's memory; empty when none does."""
    if kind.part:
        return f"{source}: a compute instance shares the memory of its MIG slice"
    if name.endswith(SHARED_RESOURCE):
        return f"{prefix} is a shared MIG slice"
    if product.endswith(SHARED_PRODUCT):
        return f"label {prefix}.product={product}: the MIG slice is shared"
    strategy = labels.get(f"{prefix}.sharing-strategy", "none")
    if strategy != "none":
        return f"label {prefix}.sharing-strategy={strategy!r}: the MIG slice is shared"
    replicas = labels.get(f"{prefix}.replicas", "1")
    if replicas != "1":
        return f"label {prefix}.replicas={replicas!r}: the MIG slice is shared, expected 1"
    whole, own = (labels.get(f"{prefix}.slices.{part}", "") for part in ("gi", "ci"))
    if whole and own and whole != own:
        return f"label {prefix}.slices.ci={own} of slices.gi={whole}: the slice's memory is shared"
    return ""
