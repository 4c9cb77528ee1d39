"""What this version of the engine can run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plimsoll_worker.launch.precision import GGUF, Device, Precision
from plimsoll_worker.launch.wire import ENGINE_VERSION, Wire


class Capabilities(Wire):
    """What an engine version can run. Planning offers nothing else, and says EngineUnsupported otherwise."""

    engine_version: str
    architectures: tuple[str, ...]
    weights: dict[Device, tuple[Precision, ...]]
    """What weights can be kept in. A precision that only holds is made while loading."""
    kv_cache: dict[Device, tuple[Precision, ...]] = Field(default_factory=dict)
    """What keys and values can be kept in besides the precision of the computation."""
    checkpoints: dict[Device, tuple[str, ...]] = Field(default_factory=dict)
    """Formats of quantized checkpoints that are loaded as they are stored, as `quant_method` of a config.json
    names them, and GGUF."""
    quantized_experts: bool = False
    """Whether the matrices of experts can be kept in fewer bits. Without it a model that has experts is kept
    in a precision that is computed in."""
    max_tensor_parallel: Annotated[int, Field(ge=1)]
    max_pipeline_parallel: Annotated[int, Field(ge=1)]
    max_tensor_parallel_of_stages: Annotated[int, Field(ge=1)] = 1
    """Ranks of each stage, where there are several stages."""
    multi_node: bool = True
    """Whether the stages of a replica may run on different nodes."""


CAPABILITIES = Capabilities(
    engine_version=ENGINE_VERSION,
    architectures=(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "granite",
        "mixtral",
        "qwen3_moe",
    ),
    weights={
        Device.GPU: (
            Precision.BF16,
            Precision.FP16,
            Precision.FP32,
            Precision.INT8,
            Precision.FP8,
            Precision.INT4,
        ),
        Device.CPU: (Precision.FP32, Precision.INT8, Precision.FP8, Precision.INT4),
    },
    kv_cache={Device.GPU: (Precision.FP8,), Device.CPU: (Precision.FP8,)},
    checkpoints={
        Device.GPU: ("gptq", "awq", "fp8", "compressed-tensors", GGUF),
        Device.CPU: ("gptq", "awq", "fp8", "compressed-tensors", GGUF),
    },
    quantized_experts=True,
    max_tensor_parallel=8,
    max_pipeline_parallel=16,
    max_tensor_parallel_of_stages=8,
)
