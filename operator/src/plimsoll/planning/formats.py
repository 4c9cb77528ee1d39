"""What weights and cache may be kept in for a deployment, best first.

A format that loses something is only ever taken when the spec allows it. What a quantized checkpoint holds is
kept as it is: converting it up costs memory and brings nothing back, converting it down rounds twice. A GGUF
file is kept so on a GPU; on a CPU, which widens matrices at every step, only where it does not fit widened.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.api.v1alpha1 import (
    KVCachePrecision,
    LLMDeploymentSpec,
    PlanStatus,
    PrecisionFloor,
    WeightsPrecision,
)
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.configuration import Configuration
from plimsoll.sizing.schemes import SCHEMES, stored_format
from plimsoll.sizing.weights import beside_quantized, native_precision
from plimsoll_worker.launch import Device, Precision

LADDER = (Precision.FP32, Precision.BF16, Precision.INT8, Precision.FP8, Precision.INT4)
"""By what rounding the weights of a 16-bit checkpoint costs, least first: perplexity of Llama-3.1-8B rises by
0.2 % in INT8 (weights only), by 1.2 % in FP8 (activations are rounded too) and by 12 % in INT4 to nearest."""


@dataclass(frozen=True, slots=True)
class Formats:
    """One choice."""

    weights: Precision
    compute: Precision
    """What is computed in, and what stays unquantized is kept in."""
    kv_cache: Precision
    checkpoint: str = ""
    """Format of a checkpoint whose matrices stay as they are stored; `weights` is then `compute`."""

    @property
    def weights_name(self) -> str:
        """For people: INT8, or the format of a quantized checkpoint."""
        return self.checkpoint or self.weights

    @property
    def cache_name(self) -> str:
        """For people; empty where the cache has the precision of the computation."""
        return "" if self.kv_cache is self.compute else f"{self.kv_cache} KV cache"

    def configuration(self, device: Device, tensor: int = 1, pipeline: int = 1) -> Configuration:
        return Configuration(
            device=device,
            weights=self.compute,
            kv_cache=self.kv_cache,
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            stored=bool(self.checkpoint),
            scheme=SCHEMES.get(self.weights),
        )


def formats(spec: LLMDeploymentSpec, facts: ModelFacts) -> tuple[Formats, ...]:
    """All that the spec allows, what loses least first."""
    device = spec.placement.device
    native = native_precision(facts, device)
    found: list[Formats] = []
    for weights, checkpoint in _kept(spec, facts, native):
        compute = _computed_in(weights, native, device)
        caches = {
            KVCachePrecision.NATIVE: (compute,),
            KVCachePrecision.FP8: (Precision.FP8,),
            KVCachePrecision.AUTO: (compute, Precision.FP8),
        }[spec.quantization.kv_cache]
        found += [Formats(weights, compute, cache, checkpoint) for cache in caches]
    return tuple(found)


def _kept(spec: LLMDeploymentSpec, facts: ModelFacts, native: Precision) -> list[tuple[Precision, str]]:
    """(precision, format of the checkpoint that stays or nothing)."""
    if facts.quantization:
        return [(native, facts.quantization)]
    widened = [(weights, "") for weights in _weights(spec, native)]
    stored, device = stored_format(facts), spec.placement.device
    if not stored or spec.quantization.weights not in (WeightsPrecision.AUTO, WeightsPrecision.NATIVE):
        return widened
    in_blocks = (beside_quantized(native, device), stored)
    return [in_blocks, *widened] if device is Device.GPU else [widened[0], in_blocks, *widened[1:]]


def _weights(spec: LLMDeploymentSpec, native: Precision) -> tuple[Precision, ...]:
    asked, floor = spec.quantization.weights, spec.quantization.floor
    if asked not in (WeightsPrecision.AUTO, WeightsPrecision.NATIVE):
        return (Precision(asked.value),)
    if asked is WeightsPrecision.NATIVE or floor is PrecisionFloor.NATIVE:
        return (native,)
    return native, *(lower for lower in below(native) if _rank(lower) <= _rank(Precision(floor.value)))


def below(precision: Precision) -> tuple[Precision, ...]:
    """What loses more, least first."""
    return LADDER[_rank(precision) + 1 :]


def _rank(precision: Precision) -> int:
    return LADDER.index(Precision.BF16 if precision is Precision.FP16 else precision)


def _computed_in(weights: Precision, native: Precision, device: Device) -> Precision:
    return weights if weights.computes else beside_quantized(native, device)


def formats_of(plan: PlanStatus) -> Formats:
    """What a plan was made for."""
    return Formats(plan.weights, plan.compute or plan.weights, plan.kv_cache, plan.checkpoint_format)
