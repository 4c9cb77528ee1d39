"""Model shapes for the sizing tests, from hyper-parameters alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dev.hub.well_known import WELL_KNOWN
from tests.unit.model.crafted import MemorySource

from plimsoll.model.facts import ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.sizing.footprint import Configuration, Workload
from plimsoll_worker.launch import Device, Precision

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def facts_of(name: str = LLAMA_8B, **changes: Any) -> ModelFacts:
    """Facts of a well-known model, some of its hyper-parameters changed."""
    config: Mapping[str, Any] = {**WELL_KNOWN[name], **changes}
    return read_facts(MemorySource({"config.json": json.dumps(config).encode()}, entry="config.json"))


def on_gpu(precision: Precision = Precision.BF16, *, tensor: int = 1, pipeline: int = 1) -> Configuration:
    return Configuration(
        device=Device.GPU,
        weights=precision,
        kv_cache=precision,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
    )


def workload(
    context: int = 8192, sequences: int = 8, batched: int = 2048, kv_tokens: int | None = None
) -> Workload:
    return Workload(
        max_context_tokens=context, max_sequences=sequences, max_batched_tokens=batched, kv_tokens=kv_tokens
    )
