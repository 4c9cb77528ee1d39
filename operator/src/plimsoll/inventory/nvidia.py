"""NVIDIA GPUs of a node: whole, MIG, time-sliced, MPS, HAMi, and what contradicts itself.

Labels as k8s-device-plugin `internal/lm` writes them. Where feature discovery is not installed, the product
comes from Karpenter's or GKE's labels. Traps that are real: `gpu.replicas` is 0 on parents of mixed MIG;
`-SHARED` is missing when the shared resource is renamed; HAMi counts virtual GPUs under `nvidia.com/gpu`; two
models on one node share one set of labels, which then describes one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from plimsoll.inventory import mig, products
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.products import MIB, Product
from plimsoll.inventory.views import NodeView

VENDOR = "NVIDIA"
GPU = "nvidia.com/gpu"
SHARED = "nvidia.com/gpu.shared"
PRODUCT, MEMORY, COUNT = "nvidia.com/gpu.product", "nvidia.com/gpu.memory", "nvidia.com/gpu.count"
REPLICAS, STRATEGY = "nvidia.com/gpu.replicas", "nvidia.com/gpu.sharing-strategy"
MAJOR, MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
HAMI_ANNOTATIONS = ("hami.io/node-nvidia-register", "hami.io/node-handshake", "4pd.io/node-nvidia-register")
HAMI_RESOURCES = ("nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores")
EC2 = ("karpenter.k8s.aws/instance-gpu-", "eks.amazonaws.com/instance-gpu-")
"""Karpenter's labels, and EKS Auto Mode's for the same."""
GKE = "cloud.google.com/gke-"
PARTITION = GKE + "gpu-partition-size"
PRODUCT_LABELS = (PRODUCT, GKE + "accelerator", *(key + "name" for key in EC2), "gpu.nvidia.com/model")
"""Who names the product, most trusted first. The last is CoreWeave's."""
COUNT_LABELS = (COUNT, GKE + "accelerator-count", *(key + "count" for key in EC2))
EC2_MEMORY_LABELS = tuple(key + "memory" for key in EC2)
MEMORY_TOLERANCE_PERCENT = 25
"""A memory label further than this from the product's own size is a contradiction: drivers differ by 2 %, a
label in GiB or bytes by a factor of a thousand, another card by a third."""
PLAUSIBLE_MIB = (1024, 2 * 1024 * 1024)
WHOLE_ONLY = "only exclusive GPUs are used"
_STRATEGIES = {
    "time-slicing": Sharing.TIME_SLICING,
    "time-sharing": Sharing.TIME_SLICING,  # GKE's word
    "mps": Sharing.MPS,
}


class _LabelError(ValueError):
    """A label does not say what it must; the message names it."""


@dataclass(frozen=True, slots=True)
class _Identity:
    product: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None
    problem: str = ""


def classes(node: NodeView) -> Iterator[GPUClass]:
    """One class per NVIDIA resource of the node, and one for GPUs that labels promise and no resource
    offers."""
    offered = node.allocatable.extended
    slices = sorted(name for name, total in offered.items() if total > 0 and mig.RESOURCE.fullmatch(name))
    for name in slices:
        card = node.labels.get(PRODUCT, "")
        yield _mig_class(node, name, offered[name], mig.of_mixed(node.labels, name, offered[name], card))
    shared = offered.get(SHARED, 0)
    if shared > 0:
        yield _class(node, SHARED, shared, *_sharing_of_renamed(node.labels))
    total = offered.get(GPU, 0)
    if total > 0 and (part := _single_mig(node, total)):
        yield _mig_class(node, GPU, total, part)
    elif total > 0:
        yield _class(node, GPU, total, *_sharing(node, total))
    elif not slices and not shared and (named := _first(node.labels, PRODUCT_LABELS)):
        reason = f"label {named} names a GPU, but the node offers no {GPU}: its device plugin does not run"
        bad = next((problem for problem in node.problems if f"[{GPU}]" in problem), reason)
        yield _class(node, GPU, 0, Sharing.UNKNOWN, bad)


def _class(node: NodeView, resource: str, total: int, sharing: Sharing, problem: str) -> GPUClass:
    identity = _identity(node.labels)
    reason = problem or identity.problem
    return GPUClass(
        vendor=VENDOR,
        product=identity.product,
        memory_bytes=identity.memory_bytes,
        compute_capability=identity.compute_capability,
        resource_name=resource,
        total=total,
        sharing=sharing,
        usable=not reason,
        reason=reason,
    )


def _single_mig(node: NodeView, total: int) -> mig.Slice | None:
    """What `nvidia.com/gpu` is where all GPUs of the node are cut into slices of one profile."""
    labels = node.labels
    if mig.IN_PRODUCT in labels.get(PRODUCT, ""):
        return mig.of_single(labels, total)
    if partition := labels.get(PARTITION, ""):
        card = labels.get(_first(labels, PRODUCT_LABELS), "")
        return mig.of_partition(card, partition, f"label {PARTITION}={partition}")
    return None


def _mig_class(node: NodeView, resource: str, total: int, part: mig.Slice) -> GPUClass:
    identity = _identity(node.labels)
    hami = _hami(node)
    reason = f"{hami}: HAMi counts virtual GPUs, {WHOLE_ONLY}" if hami else part.problem
    return GPUClass(
        vendor=VENDOR,
        product=part.product,
        memory_bytes=part.memory_bytes,
        compute_capability=identity.compute_capability,
        resource_name=resource,
        total=total,
        sharing=Sharing.HAMI if hami else Sharing.MIG,
        usable=not reason,
        reason=reason,
    )


def _sharing_of_renamed(labels: Mapping[str, str]) -> tuple[Sharing, str]:
    strategy = labels.get(STRATEGY, "")
    sharing = _STRATEGIES.get(strategy, Sharing.TIME_SLICING)
    return sharing, f"{SHARED} is a shared GPU (label {STRATEGY}={strategy!r}), {WHOLE_ONLY}"


def _sharing(node: NodeView, total: int) -> tuple[Sharing, str]:
    """How `nvidia.com/gpu` is shared, and why it cannot be used; ("None", "") for whole exclusive GPUs."""
    labels = node.labels
    if hami := _hami(node):
        return Sharing.HAMI, f"{hami}: HAMi counts virtual GPUs as {GPU}, {WHOLE_ONLY}"
    product, strategy = labels.get(PRODUCT, ""), labels.get(STRATEGY, "none")
    replicas = labels.get(REPLICAS, "1")
    if strategy in _STRATEGIES:
        return _STRATEGIES[strategy], f"label {STRATEGY}={strategy}: the GPU is shared, {WHOLE_ONLY}"
    if product.endswith("-SHARED"):
        return Sharing.TIME_SLICING, f"label {PRODUCT}={product}: the GPU is shared, {WHOLE_ONLY}"
    if strategy != "none":
        return Sharing.UNKNOWN, f"label {STRATEGY}={strategy!r}: expected none, time-slicing or mps"
    if replicas != "1":
        if re.fullmatch(r"[0-9]+", replicas) and int(replicas) > 1:
            sharing = Sharing.TIME_SLICING if STRATEGY not in labels else Sharing.UNKNOWN
            return sharing, f"label {REPLICAS}={replicas}: the GPU is shared, {WHOLE_ONLY}"
        return Sharing.UNKNOWN, f"label {REPLICAS}={replicas!r} while {GPU} is {total}: expected 1"
    return _sharing_of_cloud(labels, total)


def _hami(node: NodeView) -> str:
    annotations = (f"annotation {name}" for name in HAMI_ANNOTATIONS if name in node.annotations)
    resources = (f"resource {name}" for name in HAMI_RESOURCES if name in node.allocatable.extended)
    return next(chain(annotations, resources), "")


def _sharing_of_cloud(labels: Mapping[str, str], total: int) -> tuple[Sharing, str]:
    if strategy := labels.get(GKE + "gpu-sharing-strategy", ""):
        sharing = _STRATEGIES.get(strategy, Sharing.UNKNOWN)
        return (
            sharing,
            f"label {GKE}gpu-sharing-strategy={strategy}: the GPU is shared, {WHOLE_ONLY}",
        )
    for name in COUNT_LABELS:
        if name in labels and labels[name] != str(total):
            return Sharing.UNKNOWN, (
                f"label {name}={labels[name]} but the node allocates {total} of {GPU}: "
                "GPUs are unhealthy, shared, or of two models"
            )
    return Sharing.NONE, ""


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((name for name in names if labels.get(name)), "")


def _identity(labels: Mapping[str, str]) -> _Identity:
    source = _first(labels, PRODUCT_LABELS)
    if not source:
        return _Identity("", 0, None, f"no label names the GPU product: expected {PRODUCT}")
    name = labels[source]
    known = products.find(name)
    capability: tuple[int, int] | None = None
    try:
        capability = _compute_capability(labels, known)
        memory_mib = _memory_mib(labels, name, known)
    except _LabelError as error:
        return _Identity(name, 0, capability, str(error))
    return _Identity(name, memory_mib * MIB, capability)


def _compute_capability(labels: Mapping[str, str], known: Product | None) -> tuple[int, int] | None:
    """CUDA compute capability as numbers, so that 10.0 is more than 9.0."""
    if MAJOR not in labels and MINOR not in labels:
        return known.compute_capability if known else None
    numbers: list[int] = []
    for name in (MAJOR, MINOR):
        if not re.fullmatch(r"[0-9]{1,3}", labels.get(name, "")):
            raise _LabelError(f"label {name}={labels.get(name, '')!r}: expected a number")
        numbers.append(int(labels[name]))
    return numbers[0], numbers[1]


def _memory_mib(labels: Mapping[str, str], name: str, known: Product | None) -> int:
    if MEMORY in labels:
        return _memory_label(labels[MEMORY], name, known)
    if source := _first(labels, EC2_MEMORY_LABELS):
        return _ec2_memory(source, labels[source], name, known)
    if known:
        return known.memory_mib[0]
    raise _LabelError(f"no label {MEMORY}, and product {name} is not in the table of known GPUs")


def _ec2_memory(source: str, text: str, name: str, known: Product | None) -> int:
    """EC2 tells the card's nominal memory; NVML, which decides, up to 6 % less."""
    nominal = int(text) if re.fullmatch(r"[0-9]{1,7}", text) else 0
    sizes = [size for size in known.memory_mib if _agrees(nominal, size)] if known else []
    if not sizes:
        raise _LabelError(f"label {source}={text} contradicts product {name}: expected {MEMORY}")
    return min(nominal, *sizes)


def _memory_label(text: str, name: str, known: Product | None) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise _LabelError(f"label {MEMORY}={text!r}: expected the memory of one GPU in MiB")
    memory = int(text)
    if known and not any(_agrees(memory, size) for size in known.memory_mib):
        sizes = " or ".join(str(size) for size in known.memory_mib)
        raise _LabelError(f"label {MEMORY}={text} contradicts {name}, which has about {sizes} MiB a GPU")
    if not PLAUSIBLE_MIB[0] <= memory <= PLAUSIBLE_MIB[1]:
        raise _LabelError(f"label {MEMORY}={text}: no GPU has that many MiB")
    return memory


def _agrees(found: int, size: int) -> bool:
    return abs(found - size) * 100 <= MEMORY_TOLERANCE_PERCENT * size
