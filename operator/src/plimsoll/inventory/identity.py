"""Which NVIDIA GPU a node has: product, memory of one, compute capability.

Trusted in this order for memory: feature discovery's label, what the instance type has (Karpenter's label,
else a table), what the product has (a table). Devices of DRA tell theirs themselves (`inventory.dra`). The
name comes from feature discovery, else from a cloud's label, else from the instance type; a cloud's short
name (`nvidia-tesla-a100`, `h100`) becomes the driver's, which workers check theirs against.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from plimsoll.inventory import clouds, products
from plimsoll.inventory.clouds import InstanceType
from plimsoll.inventory.products import MIB, Product

PRODUCT, MEMORY = "nvidia.com/gpu.product", "nvidia.com/gpu.memory"
MAJOR, MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
FAMILY = "nvidia.com/gpu.family"
MEMORY_TOLERANCE_PERCENT = 25
"""A memory label further than this from the product's own size is a contradiction: drivers differ by 2 %, a
label in GiB or bytes by a factor of a thousand, the sum of two cards by a factor of two, another card by a
third."""
PLAUSIBLE_MIB = (1024, 2 * 1024 * 1024)
_FAMILIES = {
    "volta": ((7, 0), (7, 4)),
    "turing": ((7, 5), (7, 9)),
    "ampere": ((8, 0), (8, 8)),
    "ada-lovelace": ((8, 9), (8, 9)),
    "hopper": ((9, 0), (9, 9)),
    "blackwell": ((10, 0), (12, 9)),
}
"""Feature discovery's names for ranges of compute capabilities."""


class LabelError(ValueError):
    """A label does not say what it must; the message names it."""


@dataclass(frozen=True, slots=True)
class Identity:
    product: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None
    problem: str = ""
    """What is missing or contradicts itself, the label named; memory is 0 then."""


def identity(labels: Mapping[str, str]) -> Identity:
    """The whole GPUs of a node, as its labels tell them. Never raises."""
    source, name = named(labels)
    if not name:
        return Identity("", 0, None, f"no label names the GPU product: expected {PRODUCT}")
    known, capability = products.find(name), None
    try:
        capability = _compute_capability(labels, known)
        memory_mib = _memory_mib(labels, name, known)
    except LabelError as error:
        return Identity(name, 0, capability, str(error))
    if known and source != PRODUCT and source not in clouds.INSTANCE_TYPES:
        name = known.name(memory_mib)
    return Identity(name, memory_mib * MIB, capability)


def named(labels: Mapping[str, str]) -> tuple[str, str]:
    """The most trusted label that names the product, and the product; both empty where none does."""
    for label in (PRODUCT, *clouds.PRODUCT_LABELS):
        if labels.get(label):
            return label, labels[label]
    kind = clouds.instance_type(labels)
    return (kind.label, kind.product) if kind else ("", "")


def compute_capability(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """As numbers, so that 10.0 is more than 9.0. Raises LabelError."""
    return _compute_capability(labels, products.find(named(labels)[1]))


def _compute_capability(labels: Mapping[str, str], known: Product | None) -> tuple[int, int] | None:
    if MAJOR not in labels and MINOR not in labels:
        return known.compute_capability if known else None
    numbers: list[int] = []
    for name in (MAJOR, MINOR):
        if not re.fullmatch(r"[0-9]{1,3}", labels.get(name, "")):
            raise LabelError(f"label {name}={labels.get(name, '')!r}: expected a number")
        numbers.append(int(labels[name]))
    found = numbers[0], numbers[1]
    family = labels.get(FAMILY, "")
    least, most = _FAMILIES.get(family, (found, found))
    if not least <= found <= most:
        told = f"{MAJOR}={found[0]} and {MINOR}={found[1]}"
        raise LabelError(f"label {FAMILY}={family} contradicts {told}: two GPU models on one node?")
    return found


def _memory_mib(labels: Mapping[str, str], name: str, known: Product | None) -> int:
    if MEMORY in labels:
        return _memory_label(labels[MEMORY], name, known)
    if source := next((label for label in clouds.EC2_MEMORY_LABELS if labels.get(label)), ""):
        return _ec2_memory(source, labels[source], name, known)
    if known is None:
        raise LabelError(f"no label {MEMORY}, and product {name} is not in the table of known GPUs")
    return _of_instance_type(clouds.instance_type(labels), known) or known.memory_mib[0]


def _of_instance_type(kind: InstanceType | None, known: Product) -> int:
    """The one of a product's sizes that the instance type has; 0 when it tells nothing."""
    sold = products.find(kind.product) if kind else None
    return next((mib for mib in sold.memory_mib if mib in known.memory_mib), 0) if sold else 0


def _ec2_memory(source: str, text: str, name: str, known: Product | None) -> int:
    """EC2 tells one card's nominal memory; NVML, which decides, up to 6 % less."""
    nominal = int(text) if re.fullmatch(r"[0-9]{1,7}", text) else 0
    sizes = [size for size in known.memory_mib if _agrees(nominal, size)] if known else []
    if not sizes:
        raise LabelError(f"label {source}={text} contradicts product {name}: expected {MEMORY}")
    return min(nominal, *sizes)


def _memory_label(text: str, name: str, known: Product | None) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise LabelError(f"label {MEMORY}={text!r}: expected the memory of one GPU in MiB")
    memory = int(text)
    if known and not any(_agrees(memory, size) for size in known.memory_mib):
        sizes = " or ".join(str(size) for size in known.memory_mib)
        raise LabelError(f"label {MEMORY}={text} contradicts {name}, which has about {sizes} MiB a GPU")
    if not PLAUSIBLE_MIB[0] <= memory <= PLAUSIBLE_MIB[1]:
        raise LabelError(f"label {MEMORY}={text}: no GPU has that many MiB")
    return memory


def _agrees(found: int, size: int) -> bool:
    return abs(found - size) * 100 <= MEMORY_TOLERANCE_PERCENT * size
