"""Which field of the spec would make a model fit, tried with the same arithmetic that refused it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from plimsoll.planning.candidates import configuration
from plimsoll.planning.options import Option, workload
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.sizing.footprint import Footprint, footprint
from plimsoll_worker.launch import Device, Precision

LEAST_CONTEXT = 16
"""The schema's least maxContextTokens; also a KV block, so steps of it lose nothing."""
WORTHWHILE_CONTEXT = 256
"""A shorter context is not worth proposing."""


def remedies(request: DeploymentRequest, option: Option, fits: Callable[[Footprint], bool]) -> list[str]:
    """Changes of one field each that would fit, as text to write; empty when none helps."""
    facts, asked = request.facts, workload(request.spec, request.facts)
    config = option.footprint.configuration

    def holds(context: int, sequences: int) -> bool:
        batched = min(asked.max_batched_tokens, context * sequences)
        load = replace(asked, max_context_tokens=context, max_sequences=sequences, max_batched_tokens=batched)
        return fits(footprint(facts, config, load))

    found: list[str] = []
    blocks = _most(
        asked.max_context_tokens // LEAST_CONTEXT, lambda n: holds(n * LEAST_CONTEXT, asked.max_sequences)
    )
    if blocks * LEAST_CONTEXT >= WORTHWHILE_CONTEXT:
        found.append(f"workload.maxContextTokens: {blocks * LEAST_CONTEXT}")
    if sequences := _most(asked.max_sequences, lambda n: holds(asked.max_context_tokens, n)):
        found.append(f"workload.maxConcurrentSequences: {sequences}")
    if config.weights is Precision.FP32 and config.device is Device.GPU:
        narrow = configuration(Device.GPU, Precision.BF16, config.tensor_parallel, config.pipeline_parallel)
        if fits(footprint(facts, narrow, asked)):
            found.append("quantization.weights: BF16")
    return found


def _most(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that holds, 0 for none; bytes grow with it, so bisection finds it."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
