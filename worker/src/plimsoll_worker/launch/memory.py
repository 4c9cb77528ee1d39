"""Bytes by category: what was predicted and what was measured."""

from __future__ import annotations

from enum import StrEnum

from plimsoll_worker.launch.wire import Bytes, Wire


class MemoryCategory(StrEnum):
    """Where the bytes of a device go. Predictions use all but `unattributed`, which is what a ledger
    cannot explain."""

    WEIGHTS = "weights"
    KV_CACHE = "kvCache"
    ACTIVATIONS = "activations"
    CUDA_GRAPHS = "cudaGraphs"
    COMMUNICATION = "communication"
    RUNTIME = "runtime"
    FRAGMENTATION = "fragmentation"
    UNATTRIBUTED = "unattributed"


class PredictedMemory(Wire):
    """Bytes per category on the worst rank of one stage."""

    weights: Bytes
    """Weights as the engine keeps them."""
    kv_cache: Bytes
    """The KV pool."""
    activations: Bytes
    """Peak of what one forward pass holds besides weights and KV cache."""
    cuda_graphs: Bytes
    """Captured CUDA graphs; 0 on CPU."""
    communication: Bytes
    """Buffers between the GPUs of a replica; 0 for a single device."""
    runtime: Bytes
    """Context, libraries and workspaces of the device, or the interpreter and its libraries on CPU."""
    fragmentation: Bytes
    """What the allocator holds without using it."""

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in type(self).model_fields)


class MeasuredMemory(PredictedMemory):
    """Bytes per category as the worker's ledger found them; `unattributed` may be negative when the device
    reports less."""

    unattributed: int = 0
    """Used on the device and in no category; negative when the device reports less than the ledger."""
