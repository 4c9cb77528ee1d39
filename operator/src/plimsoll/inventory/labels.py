"""Which GPUs a node has, from its labels and allocatable resources.

The labels are contracts of several publishers, in new and deprecated spellings, and they contradict each
other in practice. A class is usable only when everything says "whole, exclusive GPU" or "MIG slice with
memory of its own", and its memory is known; everything else is told apart and refused with a reason that
names the label. Guessing was the rejected alternative: a shared GPU taken for a whole one is an out-of-memory
crash of two tenants. Never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from plimsoll.inventory import mig, nvidia
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.views import NodeView

__all__ = ["GPUClass", "Sharing", "gpu_classes"]

AMD = "amd.com/gpu"
AMD_PREFIXES = ("amd.com/gpu.", "beta.amd.com/gpu.")
OTHER_VENDORS = {
    "gpu.intel.com/i915": "Intel",
    "gpu.intel.com/xe": "Intel",
    "habana.ai/gaudi": "Intel",
    "google.com/tpu": "Google",
}
GIB = 1 << 30


def gpu_classes(node: NodeView) -> tuple[GPUClass, ...]:
    """All kinds of GPU of a node, usable or not, in a stable order."""
    return (*nvidia.classes(node), *_amd(node), *_others(node))


def _amd(node: NodeView) -> Iterator[GPUClass]:
    total = node.allocatable.extended.get(AMD, 0)
    product = _amd_label(node.labels, "product-name")
    if total <= 0 and not product:
        return
    vram = re.fullmatch(r"([0-9]{1,5})G", _amd_label(node.labels, "vram"))
    yield GPUClass(
        vendor="AMD",
        product=product,
        memory_bytes=int(vram.group(1)) * GIB if vram else 0,
        compute_capability=None,
        resource_name=AMD,
        total=total,
        sharing=_amd_sharing(_amd_label(node.labels, "compute-memory-partition")),
        usable=False,
        reason=f"{AMD}: the engine runs on NVIDIA GPUs only",
    )


def _amd_label(labels: Mapping[str, str], name: str) -> str:
    return next((labels[prefix + name] for prefix in AMD_PREFIXES if labels.get(prefix + name)), "")


def _amd_sharing(partition: str) -> Sharing:
    """SPX is the whole card, CPX and the like are parts of one; without the label nothing is known."""
    return Sharing.NONE if partition.lower().startswith("spx") else Sharing.UNKNOWN


def _others(node: NodeView) -> Iterator[GPUClass]:
    for name in sorted(node.allocatable.extended):
        vendor = OTHER_VENDORS.get(name, "Unknown" if _looks_like_gpu(name) else "")
        total = node.allocatable.extended[name]
        if not vendor or total <= 0:
            continue
        yield GPUClass(
            vendor=vendor,
            product=node.labels.get("gpu.intel.com/product", "") if vendor == "Intel" else "",
            memory_bytes=0,
            compute_capability=None,
            resource_name=name,
            total=total,
            sharing=Sharing.UNKNOWN,
            usable=False,
            reason=f"{name}: the engine runs on whole NVIDIA GPUs ({nvidia.GPU}) only",
        )


def _looks_like_gpu(name: str) -> bool:
    known = (nvidia.GPU, nvidia.SHARED, AMD, *nvidia.HAMI_RESOURCES)
    if name in known or mig.RESOURCE.fullmatch(name):
        return False
    return re.search(r"gpu(?![a-z])", name.lower()) is not None and not name.endswith("_monitoring")
