"""How many tokens the KV pool holds: the planned bytes, or what the line leaves when the start took more than
foreseen.

The pool is found in two passes. First the smallest one that serves a sequence of the longest context, and the
step that takes the most memory: what is in use then, less that pool, is everything else. Then the real pool,
and the same step again, held against the line. Filling the planned pool first and looking afterwards was the
alternative; on a CPU whose container is limited at the line that is a kill by the kernel instead of a reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.errors import MemoryEstimateExceeded
from plimsoll_worker.launch import DeviceReport, Launch, Precision
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.weights import DTYPES
from plimsoll_worker.memory import DeviceMemory
from plimsoll_worker.models.decoder import Decoder

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is counted exactly; the device adds what it measures at the time of asking."""

    memory: DeviceMemory
    weights: int
    kv_cache: int
    activations: int

    def report(self) -> DeviceReport:
        return self.memory.report(weights=self.weights, kv_cache=self.kv_cache, activations=self.activations)


def kv_blocks(launch: Launch, bytes_per_token: int) -> tuple[int, int]:
    """(fewest, planned) blocks: the fewest hold one sequence of the longest context, the planned ones
    `kvCacheBytes`.

    Raises MemoryEstimateExceeded when the planned are fewer than the fewest.
    """
    fewest = -(-launch.max_context_tokens // launch.kv_block_size)
    planned = launch.kv_cache_bytes // (bytes_per_token * launch.kv_block_size)
    if planned < fewest:
        raise MemoryEstimateExceeded(
            f"kvCacheBytes {launch.kv_cache_bytes} holds {planned * launch.kv_block_size} tokens of "
            f"{bytes_per_token} bytes in blocks of {launch.kv_block_size}; one sequence of maxContextTokens "
            f"{launch.max_context_tokens} needs {fewest * bytes_per_token * launch.kv_block_size} bytes"
        )
    return fewest, planned


def warm_up(launch: Launch, model: Decoder, memory: DeviceMemory) -> tuple[ModelRunner, Ledger]:
    """A runner whose pool keeps the device under the line, and the ledger of what it took.

    Raises MemoryEstimateExceeded.
    """
    per_token = model.config.kv_bytes_per_token(launch.kv_cache)
    block_bytes = per_token * launch.kv_block_size
    fewest, planned = kv_blocks(launch, per_token)
    memory.release()
    runner = ModelRunner(model, _cache(launch, model, fewest))
    runner.rehearse(tokens=1, context=1, sequences=1)
    before = memory.used()
    elsewhere = _rehearse(launch, runner, memory) - fewest * block_bytes
    activations = max(0, elsewhere + fewest * block_bytes - before)
    blocks = min(planned, (launch.line - elsewhere) // block_bytes)
    while blocks >= fewest:
        del runner
        memory.release()
        runner = ModelRunner(model, _cache(launch, model, blocks))
        over = _rehearse(launch, runner, memory) - launch.line
        if over <= 0:
            return runner, Ledger(memory, model.weight_bytes, runner.cache.bytes, activations)
        blocks -= -(-over // block_bytes)
    raise MemoryEstimateExceeded(
        f"{elsewhere / GIB:.3f} GiB are in use without the KV pool (weights {model.weight_bytes / GIB:.3f}, "
        f"activations {activations / GIB:.3f}), predicted were "
        f"{(launch.predicted.total - launch.predicted.kv_cache) / GIB:.3f}; the line of "
        f"{launch.line / GIB:.3f} GiB has no room for the {fewest * block_bytes / GIB:.3f} GiB one sequence "
        f"of {launch.max_context_tokens} tokens takes"
    )


def _cache(launch: Launch, model: Decoder, blocks: int) -> KVCache:
    precision: Precision = launch.kv_cache
    return KVCache(
        model.config,
        blocks=blocks,
        block_size=launch.kv_block_size,
        dtype=DTYPES[precision],
        device=model.device,
    )


def _rehearse(launch: Launch, runner: ModelRunner, memory: DeviceMemory) -> int:
    """Bytes of the device in use at the peak of the step that takes the most."""
    memory.reset_peak()
    runner.rehearse(
        tokens=launch.max_batched_tokens,
        context=launch.max_context_tokens,
        sequences=launch.max_concurrent_sequences,
        layers=1,
    )
    return memory.peak()
