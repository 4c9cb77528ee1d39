"""Compares what would run with what was planned. A worker that runs something else must not turn ready:
the plan's bytes, the Service and the other pods of the replica all rely on it."""

from __future__ import annotations

import torch

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.engine.capacity import kv_blocks
from plimsoll_worker.errors import EffectiveConfigMismatch
from plimsoll_worker.launch import CAPABILITIES, Device, Launch, LayerRange
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.weights import DTYPES
from plimsoll_worker.models.decoder import Decoder


def check_plan(launch: Launch, config: ModelConfig, product: str) -> None:
    """What can be told before weights are loaded.

    Raises EffectiveConfigMismatch naming the launch's field, MemoryEstimateExceeded for too small a KV pool.
    """
    offered = CAPABILITIES.weights[launch.device]
    _expect(
        "weights.name", launch.weights.name, launch.weights.name in offered, f"one of {', '.join(offered)}"
    )
    bits = 8 * launch.weights.name.bytes
    _expect(
        "weights.bits", launch.weights.bits, launch.weights.bits == bits, f"{bits} for {launch.weights.name}"
    )
    _expect(
        "weights.groupSize",
        launch.weights.group_size,
        launch.weights.group_size is None,
        "none: no quantization",
    )
    _expect(
        "weights.scaleType",
        launch.weights.scale_type,
        launch.weights.scale_type is None,
        "none: no quantization",
    )
    _expect("kvCache", launch.kv_cache, launch.kv_cache in offered, f"one of {', '.join(offered)}")
    _expect("tensorParallel", launch.tensor_parallel, launch.tensor_parallel == 1, "1")
    _expect("pipelineParallel", launch.pipeline_parallel, launch.pipeline_parallel == 1, "1")
    _expect("stage", launch.stage, launch.stage == 0, "0")
    longest = config.max_position
    fits = launch.max_context_tokens <= longest
    _expect(
        "maxContextTokens",
        launch.max_context_tokens,
        fits,
        f"at most {longest}, which the model was made for",
    )
    whole = LayerRange(first=0, last=config.layer_count)
    _expect(
        "layers", f"{launch.layers.first}-{launch.layers.last}", launch.layers == whole, f"0-{whole.last}"
    )
    kv_blocks(launch, config.kv_bytes_per_token(launch.kv_cache))
    if launch.expected_product is not None:
        same = _plain(launch.expected_product) == _plain(product)
        _expect("expectedProduct", launch.expected_product, same, f"{product}, the device of this pod")


def check_effective(launch: Launch, model: Decoder, cache: KVCache) -> None:
    """What really lies on the device. Raises EffectiveConfigMismatch."""
    kind = "cpu" if launch.device is Device.CPU else "cuda"
    for name, tensor in (*model.named_parameters(), ("the KV pool", cache.keys[0])):
        wanted = DTYPES[launch.kv_cache if name == "the KV pool" else launch.weights.name]
        _agree(name, "device", tensor.device.type, kind)
        _agree(name, "element type", tensor.dtype, wanted)


def _agree(name: str, what: str, found: str | torch.dtype, planned: str | torch.dtype) -> None:
    if found != planned:
        raise EffectiveConfigMismatch(f"{what} of {name}: found {found}, planned {planned}")


def _expect(field: str, found: object, holds: bool, expected: str) -> None:
    if not holds:
        raise EffectiveConfigMismatch(f"{field} of the launch is {found}, expected {expected}")


def _plain(product: str) -> str:
    """Device plugins write NVIDIA-H100-80GB-HBM3 where the driver says "NVIDIA H100 80GB HBM3"."""
    return product.replace(" ", "-").casefold()
