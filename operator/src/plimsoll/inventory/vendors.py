"""GPUs that the engine does not run: listed with what is known of them, so that nobody wonders where they
are.

AMD: the node labeller's labels under `amd.com/gpu.`, in older versions `beta.amd.com/gpu.`, where a value can
also be the last part of the key (`amd.com/gpu.vram.192G=8`); each label only where its flag was given.
Intel: labels of its GPU plugin; `memory.max` is the sum over all cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from plimsoll.inventory import clouds, mig, nvidia
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.products import GIB, memory_of_others
from plimsoll.inventory.views import NodeView

AMD = "amd.com/gpu"
AMD_PREFIXES = ("amd.com/gpu.", "beta.amd.com/gpu.", "amd.com/")
AMD_PARTITION = re.compile(r"amd\.com/[a-z]px_nps[0-9]")
"""Resources of partitioned cards, where the plugin names them apart."""
INTEL = ("gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi")
INTEL_PREFIX = "gpu.intel.com/"
"""Also of resources that count millicores, memory and monitors, which are no GPUs."""
TPU, TPU_LABEL = "google.com/tpu", "cloud.google.com/gke-tpu-accelerator"
UNITS = {"M": 1 << 20, "G": GIB, "T": 1 << 40}


def classes(node: NodeView) -> Iterator[GPUClass]:
    """One class per resource that is a GPU of another vendor, or looks like one."""
    offered, labels = node.allocatable.extended, node.labels
    partitions = sorted(name for name in offered if AMD_PARTITION.fullmatch(name) and offered[name] > 0)
    yield from (_amd(labels, name, offered[name], name.removeprefix("amd.com/")) for name in partitions)
    if offered.get(AMD, 0) > 0 or (not partitions and _amd_product(labels)):
        partition = _amd_label(labels, "compute-memory-partition")
        yield _amd(labels, AMD, offered.get(AMD, 0), partition)
    for name in sorted(offered):
        if offered[name] <= 0 or name == AMD or name in partitions:
            continue
        if name in INTEL:
            yield _class("Intel", *_intel(labels, name, offered[name]), name, offered[name])
        elif name == TPU:
            yield _class("Google", labels.get(TPU_LABEL, ""), 0, name, offered[name])
        elif _looks_like_gpu(name):
            yield _class("Unknown", "", 0, name, offered[name])


def _class(
    vendor: str, product: str, memory: int, resource: str, total: int, sharing: Sharing = Sharing.UNKNOWN
) -> GPUClass:
    return GPUClass(
        vendor=vendor,
        product=product,
        memory_bytes=memory,
        compute_capability=None,
        resource_name=resource,
        total=total,
        sharing=sharing,
        usable=False,
        reason=f"{resource}: the engine runs on NVIDIA GPUs ({nvidia.GPU}) only",
    )


def _amd(labels: Mapping[str, str], resource: str, total: int, partition: str) -> GPUClass:
    """SPX is the whole card, CPX and the like are parts of one; without a word nothing is known."""
    product = _amd_product(labels)
    vram = re.fullmatch(r"([0-9]{1,6})([MGT])i?B?", _amd_label(labels, "vram"))
    memory = int(vram.group(1)) * UNITS[vram.group(2)] if vram else memory_of_others(product)
    whole = partition.lower().startswith("spx")
    return _class("AMD", product, memory, resource, total, Sharing.NONE if whole else Sharing.UNKNOWN)


def _amd_product(labels: Mapping[str, str]) -> str:
    if product := _amd_label(labels, "product-name"):
        return product
    made_by_amd = any(labels.get(name, "").lower() == "amd" for name in clouds.MANUFACTURER_LABELS)
    names = (labels[name] for name in clouds.PRODUCT_LABELS if labels.get(name))
    return next(names, "") if made_by_amd else ""


def _amd_label(labels: Mapping[str, str], name: str) -> str:
    for prefix in AMD_PREFIXES:
        if value := labels.get(prefix + name):
            return value
        counted = sorted(key for key in labels if key.startswith(f"{prefix}{name}."))
        if counted:
            return counted[0].removeprefix(f"{prefix}{name}.")
    return ""


def _intel(labels: Mapping[str, str], resource: str, total: int) -> tuple[str, int]:
    """Product, and bytes of one GPU."""
    if not resource.startswith(INTEL_PREFIX):
        return "Gaudi", 0
    product = labels.get(INTEL_PREFIX + "product", "")
    every = labels.get(INTEL_PREFIX + "memory.max", "")
    cards = labels.get(INTEL_PREFIX + "device.count", str(total))
    if re.fullmatch(r"[0-9]{1,15}", every) and re.fullmatch(r"[1-9][0-9]{0,3}", cards):
        return product, int(every) // int(cards)
    return product, memory_of_others(product)


def _looks_like_gpu(name: str) -> bool:
    known = (nvidia.GPU, nvidia.SHARED, *nvidia.HAMI_RESOURCES)
    if name in known or name.startswith(INTEL_PREFIX) or mig.RESOURCE.fullmatch(name):
        return False
    return re.search(r"gpu(?![a-z])", name.lower()) is not None
