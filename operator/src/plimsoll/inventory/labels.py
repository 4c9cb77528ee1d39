"""Which GPUs a node has, from its labels and allocatable resources.

The labels are contracts of several publishers, in new and deprecated spellings, and they contradict each
other in practice. A class is usable only when everything says "whole, exclusive GPU" or "MIG slice with
memory of its own", and its memory is known; everything else is told apart and refused with a reason that
names the label. Guessing was the rejected alternative: a shared GPU taken for a whole one is an out-of-memory
crash of two tenants. Never raises.
"""

from __future__ import annotations

from plimsoll.inventory import nvidia, vendors
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.views import NodeView

__all__ = ["GPUClass", "Sharing", "gpu_classes"]


def gpu_classes(node: NodeView) -> tuple[GPUClass, ...]:
    """All kinds of GPU of a node, usable or not, in a stable order."""
    return (*nvidia.classes(node), *vendors.classes(node))
