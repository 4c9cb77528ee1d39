"""Whether an engine and a GPU run a configuration, in words that say what would."""

from __future__ import annotations

from collections.abc import Iterator

from plimsoll.model.facts import ModelFacts, Role
from plimsoll.planning.formats import Formats
from plimsoll.sizing.configuration import Configuration
from plimsoll_worker.launch import Capabilities, Precision

NEEDED_CAPABILITY = {Precision.BF16: (8, 0), Precision.FP8: (8, 9)}
"""Compute capability from which on tensor cores take the type; compared as numbers, so 10.0 is more than
9.0."""
_INSTEAD = {
    Precision.BF16: "quantization.weights: FP32 runs there",
    Precision.FP8: "quantization.weights: INT8 runs there",
}


def unsupported(
    capabilities: Capabilities,
    facts: ModelFacts,
    formats: Formats,
    config: Configuration,
    capability: tuple[int, int] | None,
) -> str:
    """Why the configuration does not run; empty when it does. `capability`: of the GPU, None when nobody
    knows or there is none."""
    return next(_by_engine(capabilities, facts, formats, config), "") or next(
        _by_gpu(formats, capability), ""
    )


def _by_engine(
    capabilities: Capabilities, facts: ModelFacts, formats: Formats, config: Configuration
) -> Iterator[str]:
    engine, device = f"engine {capabilities.engine_version}", config.device
    runs = capabilities.weights.get(device, ())
    for precision in (formats.weights, formats.compute):
        if precision not in runs:
            known = " or ".join(runs) or "nothing"
            yield f"{engine} runs {known} on {device}: set quantization.weights to that"
    if formats.checkpoint and formats.checkpoint not in capabilities.checkpoints.get(device, ()):
        yield f"{engine} keeps no {formats.checkpoint} checkpoint as it is stored on {device}"
    if (config.scheme or config.stored) and has_experts(facts) and not capabilities.quantized_experts:
        kept = formats.checkpoint or formats.weights
        instead = "name the unquantized one in spec.model" if config.stored else (
            f"set quantization.weights: {formats.compute}"
        )  # fmt: skip
        yield f"{engine} keeps no experts in {kept}: {instead}"
    if formats.cache_name and formats.kv_cache not in capabilities.kv_cache.get(device, ()):
        yield f"{engine} runs no {formats.cache_name} on {device}: set quantization.kvCache: Native"
    if config.tensor_parallel > capabilities.max_tensor_parallel:
        yield f"{engine} runs tensor parallel {capabilities.max_tensor_parallel}"
    if config.pipeline_parallel > capabilities.max_pipeline_parallel:
        yield f"{engine} runs pipeline parallel {capabilities.max_pipeline_parallel}"
    together = capabilities.max_tensor_parallel_of_stages
    if config.pipeline_parallel > 1 and config.tensor_parallel > together:
        yield f"{engine} runs tensor parallel {together} where there are several stages"


def has_experts(facts: ModelFacts) -> bool:
    """Whether some layer routes tokens to experts."""
    return any(group.role is Role.EXPERT for layer in facts.layers for group in layer.groups)


def _by_gpu(formats: Formats, capability: tuple[int, int] | None) -> Iterator[str]:
    if capability is None:
        return
    has = ".".join(map(str, capability))
    for precision in (formats.weights, formats.compute, formats.kv_cache):
        needed = NEEDED_CAPABILITY.get(precision)
        if needed is not None and capability < needed:
            least = ".".join(map(str, needed))
            instead = f"; {_INSTEAD[precision]}" if precision is formats.weights else ""
            yield f"{precision} needs compute capability {least} and the GPU has {has}{instead}"
