"""What a worker's container asks of its node besides GPU memory: RAM, CPU and disk, by formula."""

from __future__ import annotations

from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.footprint import Footprint, StageFootprint
from plimsoll.sizing.runtime import GIB, MIB
from plimsoll.sizing.weights import largest_tensor_elements
from plimsoll_worker.launch import Device

LOADING_COPIES = 2
"""While a tensor is widened or copied to the device, it exists in place and twice besides (read and
converted)."""
GPU_PROCESS = 4 * GIB
"""Host memory of a process with torch, CUDA libraries and the server: 2.5 to 3 GiB resident in published
reports, with room for pinned staging. Page cache of the files is reclaimable and not counted."""
SCRATCH = GIB
"""Logs, /tmp and compiled kernels."""


def host_memory(
    facts: ModelFacts, footprint: Footprint, stage: StageFootprint | None = None, *, headroom_percent: int = 3
) -> int:
    """Memory request and limit of the worker container of one stage (None: the worst one), bytes.

    CPU: everything lives in this memory, so it is chosen such that its line (`headroom_percent` below the
    limit) holds the stage and what loading needs on top. GPU: a process and the tensors in flight of each
    rank.
    """
    configuration = footprint.configuration
    loading = LOADING_COPIES * largest_tensor_elements(facts) * configuration.weights.bytes
    if configuration.device is Device.GPU:
        return configuration.tensor_parallel * GPU_PROCESS + loading
    needed = (stage or footprint.worst).total + loading
    return -(-needed * 100 // (100 - headroom_percent))


def ephemeral_storage(facts: ModelFacts, *, fetches: bool) -> int:
    """Ephemeral storage request, bytes: scratch, and the files themselves when the worker fetches them."""
    # Headers, tokenizer and the partial file of a resumed download come on top of tensor data.
    files = facts.checkpoint_bytes * 101 // 100 + 64 * MIB if fetches else 0
    return SCRATCH + files


def cpu_request(footprint: Footprint) -> int:
    """CPU request of the worker container of one stage, millicores.

    A GPU rank needs one core to launch kernels and half of one for the server. On a CPU more cores mean more
    tokens, but a small request lets a small node take the pod; there is no limit, so idle cores are used.
    """
    configuration = footprint.configuration
    return 500 if configuration.device is Device.CPU else 500 + 1000 * configuration.tensor_parallel
