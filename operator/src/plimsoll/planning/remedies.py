"""Which field of the spec would make a model fit, tried with the same arithmetic that refused it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from plimsoll.api.v1alpha1 import WeightsPrecision
from plimsoll.planning import words
from plimsoll.planning.formats import below, formats
from plimsoll.planning.options import Option, workloads
from plimsoll.planning.placement import best
from plimsoll.planning.room import Room
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.sizing.footprint import Footprint, footprint
from plimsoll_worker.launch import Precision

LEAST_CONTEXT = 16
"""The schema's least maxContextTokens; also a KV block, so steps of it lose nothing."""
WORTHWHILE_CONTEXT = 256
"""A shorter context is not worth proposing."""

Options = Callable[[DeploymentRequest], Sequence[Option]]
"""What could serve a request, the best first."""


def remedies(request: DeploymentRequest, option: Option, fits: Callable[[Footprint], bool]) -> list[str]:
    """Changes of one field of the workload each that would fit, as text to write; empty when none helps."""
    facts = request.facts
    # The smallest token budget that may be planned takes least.
    asked = workloads(request.spec, facts)[-1]
    config = option.footprint.configuration

    def holds(context: int, sequences: int) -> bool:
        batched = min(asked.max_batched_tokens, context * sequences)
        pool = None
        if (mean := request.spec.workload.mean_context_tokens) is not None:
            pool = sequences * min(mean, context)
        load = replace(
            asked,
            max_context_tokens=context,
            max_sequences=sequences,
            max_batched_tokens=batched,
            kv_tokens=pool,
        )
        return fits(footprint(facts, config, load))

    found: list[str] = []
    blocks = _most(
        asked.max_context_tokens // LEAST_CONTEXT, lambda n: holds(n * LEAST_CONTEXT, asked.max_sequences)
    )
    if blocks * LEAST_CONTEXT >= WORTHWHILE_CONTEXT:
        found.append(f"workload.maxContextTokens: {blocks * LEAST_CONTEXT}")
    if sequences := _most(asked.max_sequences, lambda n: holds(asked.max_context_tokens, n)):
        found.append(f"workload.maxConcurrentSequences: {sequences}")
    return found


def lower_precision(request: DeploymentRequest, options: Options, room: Room) -> str:
    """The precision below those allowed that loses least and would run: "INT8 would fit on 1 GPU of gpu-042:
    set quantization.floor: INT8". Empty when none would."""
    if request.facts.quantization:
        return ""
    lowest = formats(request.spec, request.facts)[-1].weights
    without_room = ""
    for precision in below(lowest):
        running = [option for option in options(_in(precision, request)) if option.runs]
        for option in running:
            if node := best(option, room):
                return f"{precision} would fit on {_gpus(option)} of {node}: set {_field(precision, request)}"
        if running and running[0].gpu and not without_room:
            nearest = running[0]
            without_room = (
                f"{precision} would fit on {nearest.gpus} {nearest.product}, but no node has them free: "
                f"set {_field(precision, request)}"
            )
    return without_room


def _in(precision: Precision, request: DeploymentRequest) -> DeploymentRequest:
    asked = {"weights": precision.value, "kvCache": request.spec.quantization.kv_cache.value}
    quantization = type(request.spec.quantization).model_validate(asked)
    return replace(request, spec=request.spec.model_copy(update={"quantization": quantization}))


def _field(precision: Precision, request: DeploymentRequest) -> str:
    field = "floor" if request.spec.quantization.weights is WeightsPrecision.AUTO else "weights"
    return f"quantization.{field}: {precision}"


def _gpus(option: Option) -> str:
    return words.count(option.gpus, "GPU") if option.gpu else "the CPU"


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
