"""Compares what would run with what was planned. A worker that runs something else must not turn ready:
the plan's bytes, the Service and the other pods of the replica all rely on it."""

from __future__ import annotations

import torch

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.engine.capacity import kv_blocks
from plimsoll_worker.errors import EffectiveConfigMismatch
from plimsoll_worker.launch import CAPABILITIES, Device, Launch
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.layers.linear import QUANTIZED_PARTS
from plimsoll_worker.loading.weights import DTYPES, quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position, check_divides
from plimsoll_worker.quant.agreement import check_weights


def check_plan(
    launch: Launch,
    config: ModelConfig,
    product: str,
    *,
    checkpoint: str = "",
    capability: tuple[int, int] | None = None,
) -> None:
    """What can be told before weights are loaded. `checkpoint`: the format of a quantized one; `capability`:
    the card's, None on a CPU.

    Raises EffectiveConfigMismatch naming the launch's field, ModelUnsupported for a model that the ranks do
    not divide, MemoryEstimateExceeded for too small a KV pool.
    """
    check_weights(launch, checkpoint=checkpoint, experts=config.experts is not None, capability=capability)
    caches = (launch.weights.computed_in, *CAPABILITIES.kv_cache.get(launch.device, ()))
    _expect("kvCache", launch.kv_cache, launch.kv_cache in caches, f"one of {', '.join(caches)}")
    most = CAPABILITIES.max_tensor_parallel
    _expect("tensorParallel", launch.tensor_parallel, launch.tensor_parallel <= most, f"at most {most}")
    check_divides(config, launch.tensor_parallel)
    _check_stages(launch, config)
    longest = config.max_position
    fits = launch.max_context_tokens <= longest
    _expect(
        "maxContextTokens",
        launch.max_context_tokens,
        fits,
        f"at most {longest}, which the model was made for",
    )
    kv_blocks(launch, Position.of(launch).share(config).kv_bytes_per_token(launch.kv_cache))
    if launch.expected_product is not None:
        same = _plain(launch.expected_product) == _plain(product)
        _expect("expectedProduct", launch.expected_product, same, f"{product}, the device of this pod")


def _check_stages(launch: Launch, config: ModelConfig) -> None:
    """The cut by layers: the first stage begins at the first, the last ends at the last. That the stages
    between continue each other is the plan's matter: no stage sees another one's launch."""
    stages, most = launch.pipeline_parallel, CAPABILITIES.max_pipeline_parallel
    _expect("pipelineParallel", stages, stages <= most, f"at most {most}")
    together = CAPABILITIES.max_tensor_parallel_of_stages
    ranks = launch.tensor_parallel
    of_stages = f"at most {together} beside pipelineParallel {stages}"
    _expect("tensorParallel", ranks, stages == 1 or ranks <= together, of_stages)
    _expect("stage", launch.stage, launch.stage < stages, f"less than pipelineParallel {stages}")
    first, last, count = launch.layers.first, launch.layers.last, config.layer_count
    starts = (first == 0) == (launch.stage == 0)
    ends = (last == count) == (launch.stage == stages - 1)
    whole = f"0-{count}" if stages == 1 else f"a part of 0-{count} for stage {launch.stage} of {stages}"
    _expect("layers", f"{first}-{last}", starts and ends and first < last <= count, whole)


def check_effective(launch: Launch, model: Decoder, cache: KVCache) -> None:
    """What really lies on the device. Raises EffectiveConfigMismatch."""
    kind = "cpu" if launch.device is Device.CPU else "cuda"
    linears = quantizable(model)
    packed = {f"{name}.{part}" for name in linears for part in QUANTIZED_PARTS}
    for name, tensor in model.named_parameters():
        _agree(name, "device", tensor.device.type, kind)
        if name not in packed:
            _agree(name, "element type", tensor.dtype, DTYPES[launch.weights.computed_in])
    if launch.weights.checkpoint is None:
        for name, linear in linears.items():
            kept = linear.quantized.precision if linear.quantized else launch.weights.computed_in
            _agree(name, "precision", kept, launch.weights.name)
    _agree("the KV pool", "device", cache.keys[0].device.type, kind)
    _agree("the KV pool", "element type", cache.keys[0].dtype, DTYPES[launch.kv_cache])


def _agree(name: str, what: str, found: str | torch.dtype, planned: str | torch.dtype) -> None:
    if found != planned:
        raise EffectiveConfigMismatch(f"{what} of {name}: found {found}, planned {planned}")


def _expect(field: str, found: object, holds: bool, expected: str) -> None:
    if not holds:
        raise EffectiveConfigMismatch(f"{field} of the launch is {found}, expected {expected}")


def _plain(product: str) -> str:
    """Device plugins write NVIDIA-H100-80GB-HBM3 where the driver says "NVIDIA H100 80GB HBM3"."""
    return product.replace(" ", "-").casefold()
