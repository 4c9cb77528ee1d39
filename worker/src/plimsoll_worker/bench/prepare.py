"""Brings a random model to the state in which a worker serves: warmed up, graphs captured, the ledger
closed."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plimsoll_worker.bench.shapes import SHAPES
from plimsoll_worker.engine.capacity import Ledger, warm_up
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.kernels.precompile import Precompilation
from plimsoll_worker.launch import Device, Launch, LayerRange, Precision, PredictedMemory, WeightsScheme
from plimsoll_worker.loading.random_weights import RandomCheckpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.memory import DeviceMemory, open_device

NOTHING = PredictedMemory(
    weights=0, kv_cache=0, activations=0, cuda_graphs=0, communication=0, runtime=0, fragmentation=0
)
HEADROOM_PERCENT = 3
CPU_LINE = 1 << 40
GRAPHS_GUESS = 2 << 30
"""Room left for graphs before they are captured, where no plan says how much they take."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A runner to measure."""

    runner: ModelRunner
    ledger: Ledger
    launch: Launch

    def memory(self) -> dict[str, Any]:
        """The ledger as JSON."""
        report = self.ledger.report()
        return {
            "bytes": report.bytes.model_dump(by_alias=True),
            "usedBytes": report.used_bytes,
            "totalBytes": report.total_bytes,
            "line": self.launch.line,
            "kvCacheTokens": self.runner.cache.tokens,
        }


def prepare(
    arguments: argparse.Namespace,
    device: torch.device,
    reached: Callable[[str], None],
    kernels: Precompilation | None = None,
) -> Ready:
    """Make the model of `arguments` on `device` and warm it up. `reached` hears weightsMade, compiled and
    warmedUp. `kernels`: where their compilation has begun."""
    gpu = device.type == "cuda"
    kernels = kernels or Precompilation(Device.GPU if gpu else Device.CPU)
    memory = open_device(Device.GPU if gpu else Device.CPU)
    precision = Precision.BF16 if gpu else Precision.FP32
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(SHAPES[arguments.shape]), encoding="utf-8")
        checkpoint = RandomCheckpoint(Path(folder))
    line = _line(memory)
    matrices = Precision(arguments.weights) if arguments.weights else precision
    kept = Precision(arguments.kv_cache) if arguments.kv_cache else precision
    per_token = checkpoint.config.kv_bytes_per_token(kept)
    launch = Launch(
        plan_id="bench",
        revision="bench",
        model_path="bench",
        served_name="bench",
        device=Device.GPU if gpu else Device.CPU,
        weights=WeightsScheme.plain(precision)
        if matrices is precision
        else WeightsScheme.quantized(matrices, precision),
        kv_cache=kept,
        layers=LayerRange(first=0, last=checkpoint.config.layer_count),
        max_context_tokens=arguments.context,
        max_concurrent_sequences=arguments.sequences,
        max_batched_tokens=arguments.batched_tokens,
        kv_block_size=arguments.block_size,
        kv_cache_bytes=(arguments.kv_tokens * per_token) if arguments.kv_tokens else line,
        line=line,
        predicted=NOTHING.model_copy(update={"cuda_graphs": GRAPHS_GUESS if gpu else 0}),
    )
    kernels.want(launch, checkpoint.config)
    model = load_model(
        checkpoint, device=device, precision=precision, matrices=matrices, context=arguments.context
    )
    reached("weightsMade")
    kernels.wait()
    reached("compiled")
    runner, ledger = warm_up(launch, model, memory)
    reached("warmedUp")
    return Ready(runner, ledger, launch)


def _line(memory: DeviceMemory) -> int:
    """Where a plan would draw it; on a CPU, which a benchmark may fill, nowhere."""
    if memory.torch_device.type == "cpu":
        return CPU_LINE
    return memory.total_bytes * (100 - HEADROOM_PERCENT) // 100
