"""NVIDIA GPUs of a node: whole, MIG, time-sliced, MPS, HAMi, and what contradicts itself.

Labels as k8s-device-plugin `internal/lm` writes them. Traps that are real: `gpu.replicas` is 0 on parents of
mixed MIG; `-SHARED` is missing when the shared resource is renamed; HAMi counts virtual GPUs under
`nvidia.com/gpu`; two models on one node share one set of labels, which then describes one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain

from plimsoll.inventory import clouds, mig
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.identity import PRODUCT, Identity, LabelError, compute_capability, identity, named
from plimsoll.inventory.views import NodeView

VENDOR = "NVIDIA"
GPU = "nvidia.com/gpu"
SHARED = "nvidia.com/gpu.shared"
COUNT, REPLICAS = "nvidia.com/gpu.count", "nvidia.com/gpu.replicas"
STRATEGY = "nvidia.com/gpu.sharing-strategy"
VGPU = "nvidia.com/vgpu.present"
COUNT_LABELS = (COUNT, *clouds.COUNT_LABELS)
HAMI_ANNOTATIONS = ("hami.io/node-nvidia-register", "hami.io/node-handshake", "4pd.io/node-nvidia-register")
HAMI_RESOURCES = ("nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores")
MOST_GPUS = 64
"""More than any machine holds (16, and some 30 over PCIe switches); a node that tells more counts shares."""
MOST_SLICES = 7
"""Of one GPU."""
EXCLUSIVE_ONLY = "only exclusive GPUs are used"
_STRATEGIES = {
    "time-slicing": Sharing.TIME_SLICING,
    "time-sharing": Sharing.TIME_SLICING,  # GKE's word
    "mps": Sharing.MPS,
}
Told = tuple[Sharing, str]
"""How a resource is shared, and why it cannot be used; ("None", "") for whole exclusive GPUs."""


def classes(node: NodeView) -> Iterator[GPUClass]:
    """One class per NVIDIA resource of the node, and one for GPUs that labels promise and no resource
    offers."""
    offered, labels = node.allocatable.extended, node.labels
    slices = sorted(name for name, total in offered.items() if total > 0 and mig.RESOURCE.fullmatch(name))
    for name in slices:
        mixed = mig.of_mixed(labels, name, offered[name], labels.get(PRODUCT, ""))
        yield _mig_class(node, name, offered[name], mixed)
    shared = offered.get(SHARED, 0)
    if shared > 0:
        yield _class(labels, SHARED, shared, *_sharing_of_renamed(labels))
    total = offered.get(GPU, 0)
    if total > 0:
        single = _single_mig(labels, total)
        yield _mig_class(node, GPU, total, single) if single else _class(labels, GPU, total, *_sharing(node))
    elif not slices and not shared and (reason := _not_offered(node)):
        yield _class(labels, GPU, 0, Sharing.UNKNOWN, reason)


def _class(labels: Mapping[str, str], resource: str, total: int, sharing: Sharing, problem: str) -> GPUClass:
    found = identity(labels)
    return _gpu_class(found, resource, total, sharing, problem or found.problem)


def _mig_class(node: NodeView, resource: str, total: int, part: mig.Slice) -> GPUClass:
    sharing, reason, capability = Sharing.MIG, part.problem, None
    try:
        capability = compute_capability(node.labels)
    except LabelError as error:
        reason = reason or str(error)
    if total > MOST_GPUS * MOST_SLICES:
        reason = reason or _too_many(resource, total)
    if hami := _hami(node):
        sharing, reason = Sharing.HAMI, f"{hami}: HAMi counts virtual GPUs, {EXCLUSIVE_ONLY}"
    return _gpu_class(Identity(part.product, part.memory_bytes, capability), resource, total, sharing, reason)


def _gpu_class(found: Identity, resource: str, total: int, sharing: Sharing, reason: str) -> GPUClass:
    return GPUClass(
        vendor=VENDOR,
        product=found.product,
        memory_bytes=found.memory_bytes,
        compute_capability=found.compute_capability,
        resource_name=resource,
        total=total,
        sharing=sharing,
        usable=not reason,
        reason=reason,
    )


def _single_mig(labels: Mapping[str, str], total: int) -> mig.Slice | None:
    """What `nvidia.com/gpu` is where all GPUs of the node are cut into slices of one profile."""
    if mig.IN_PRODUCT in labels.get(PRODUCT, ""):
        return mig.of_single(labels, total)
    if partition := labels.get(clouds.PARTITION, ""):
        return mig.of_partition(identity(labels).product, partition, f"label {clouds.PARTITION}={partition}")
    return None


def _not_offered(node: NodeView) -> str:
    """Why no `nvidia.com/gpu` is there although something promises it; empty when nothing does."""
    label, product = named(node.labels)
    maker = next(
        (node.labels[name] for name in clouds.MANUFACTURER_LABELS if node.labels.get(name)), "nvidia"
    )
    if not product or maker.lower() != "nvidia":
        return ""
    odd = next((problem for problem in node.problems if f"[{GPU}]" in problem), "")
    return (
        odd
        or _fraction(node.labels)
        or (f"label {label} names a GPU, but the node offers no {GPU}: its device plugin does not run")
    )


def _sharing_of_renamed(labels: Mapping[str, str]) -> Told:
    strategy = labels.get(STRATEGY, "")
    sharing = _STRATEGIES.get(strategy, Sharing.TIME_SLICING)
    return sharing, f"{SHARED} is a shared GPU (label {STRATEGY}={strategy!r}), {EXCLUSIVE_ONLY}"


def _sharing(node: NodeView) -> Told:
    """How `nvidia.com/gpu` is shared."""
    labels, total = node.labels, node.allocatable.extended[GPU]
    if hami := _hami(node):
        return Sharing.HAMI, f"{hami}: HAMi counts virtual GPUs as {GPU}, {EXCLUSIVE_ONLY}"
    product, strategy = labels.get(PRODUCT, ""), labels.get(STRATEGY, "none")
    replicas = labels.get(REPLICAS, "1")
    if strategy in _STRATEGIES:
        return _STRATEGIES[strategy], f"label {STRATEGY}={strategy}: the GPU is shared, {EXCLUSIVE_ONLY}"
    if product.endswith(mig.SHARED_PRODUCT):
        return Sharing.TIME_SLICING, f"label {PRODUCT}={product}: the GPU is shared, {EXCLUSIVE_ONLY}"
    if strategy != "none":
        return Sharing.UNKNOWN, f"label {STRATEGY}={strategy!r}: expected none, time-slicing or mps"
    if replicas != "1":
        if re.fullmatch(r"[0-9]+", replicas) and int(replicas) > 1:
            sharing = Sharing.TIME_SLICING if STRATEGY not in labels else Sharing.UNKNOWN
            return sharing, f"label {REPLICAS}={replicas}: the GPU is shared, {EXCLUSIVE_ONLY}"
        return Sharing.UNKNOWN, f"label {REPLICAS}={replicas!r} while {GPU} is {total}: expected 1"
    if strategy := labels.get(clouds.SHARING_STRATEGY, ""):
        sharing = _STRATEGIES.get(strategy, Sharing.UNKNOWN)
        told = f"label {clouds.SHARING_STRATEGY}={strategy}: the GPU is shared, {EXCLUSIVE_ONLY}"
        return sharing, told
    problem = _fraction(labels) or _miscounted(labels, total)
    return (Sharing.UNKNOWN, problem) if problem else (Sharing.NONE, "")


def _hami(node: NodeView) -> str:
    annotations = (f"annotation {name}" for name in HAMI_ANNOTATIONS if name in node.annotations)
    resources = (f"resource {name}" for name in HAMI_RESOURCES if name in node.allocatable.extended)
    return next(chain(annotations, resources), "")


def _fraction(labels: Mapping[str, str]) -> str:
    """Why the node has parts of GPUs (vGPU) although nothing calls them shared; empty when it has not."""
    if labels.get(VGPU, "").lower() == "true":
        return f"label {VGPU}=true: a vGPU, {EXCLUSIVE_ONLY}"
    if source := next((name for name in clouds.COUNT_LABELS if labels.get(name) == "0"), ""):
        return f"label {source}=0: a fraction of a GPU, {EXCLUSIVE_ONLY}"
    kind = clouds.instance_type(labels)
    if kind and kind.gpus == 0:
        return f"label {kind.label}={kind.name}: a fraction of a {kind.product}, {EXCLUSIVE_ONLY}"
    return ""


def _miscounted(labels: Mapping[str, str], total: int) -> str:
    """Which number contradicts the node's own; empty when none does."""
    told = {f"label {name}={labels[name]}": labels[name] for name in COUNT_LABELS if name in labels}
    if not told and (kind := clouds.instance_type(labels)):
        told = {f"label {kind.label}={kind.name} ({kind.gpus} GPUs)": str(kind.gpus)}
    for source, number in told.items():
        if number != str(total):
            return (
                f"{source} but the node allocates {total} of {GPU}: "
                "GPUs are unhealthy, shared, or of two models"
            )
    return _too_many(GPU, total) if total > MOST_GPUS else ""


def _too_many(resource: str, total: int) -> str:
    return f"the node allocates {total} of {resource}: no machine has so many, are they shared?"
