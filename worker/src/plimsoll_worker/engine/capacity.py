"""How many tokens the KV pool holds: the planned bytes, or what the line leaves when the start took more than
foreseen.

The pool is found in two passes. First the smallest one that serves a sequence of the longest context, and the
steps that take the most memory: what is in use then, less that pool, is everything else but the graphs. Then
the planned pool, as far as the line goes, the graphs, which have its addresses built in, and the same steps
again, held against the line. Filling the planned pool first and looking afterwards was the alternative; on a
CPU whose container is limited at the line that is a kill by the kernel instead of a reason. Capturing the
graphs twice to know them beforehand was another: it costs seconds at every start, a pool that shrinks costs
them once.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.errors import MemoryEstimateExceeded
from plimsoll_worker.launch import DeviceReport, Launch
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.weights import DTYPES
from plimsoll_worker.memory import Counted, DeviceMemory
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.progress import say

MIB, GIB = 1024**2, 1024**3


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is counted; the device adds what it measures at the time of asking."""

    memory: DeviceMemory
    counted: Counted

    @property
    def activations(self) -> int:
        return self.counted.activations

    def report(self) -> DeviceReport:
        return self.memory.report(self.counted)


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


def warm_up(
    launch: Launch,
    model: Decoder,
    memory: DeviceMemory,
    least: Callable[[int], int] = lambda number: number,
) -> tuple[ModelRunner, Ledger]:
    """A runner whose pool keeps the device under the line, and the ledger of what it took. `least`: the
    smallest that any process of the replica says; the pools of all hold the same blocks.

    Raises MemoryEstimateExceeded.
    """
    per_token = model.share.kv_bytes_per_token(launch.kv_cache)
    block_bytes = per_token * launch.kv_block_size
    fewest, planned = kv_blocks(launch, per_token)
    memory.release()
    runner = _runner(launch, model, fewest)
    with _timed("first steps"):
        memory.rise(runner.rehearse)  # loads kernels and libraries, whose memory is not the step's
    with _timed("activations"):
        activations = memory.rise(runner.rehearse)
    elsewhere = memory.peak() - fewest * block_bytes
    room = launch.line - elsewhere - launch.predicted.cuda_graphs
    blocks = least(min(planned, room // block_bytes))
    while blocks >= fewest:
        del runner
        gc.collect()  # its graphs refer to it
        memory.release()
        with _timed("pool"):
            runner = _runner(launch, model, blocks)
        with _timed("graphs"):
            graphs = memory.growth(runner.capture)
        counted = Counted(
            weights=model.weight_bytes,
            kv_cache=runner.cache.bytes,
            workspace=runner.workspace_bytes,
            activations=activations,
            graphs=graphs,
        )
        # After the graphs: capturing gives back what the allocator keeps for these steps.
        with _timed("last steps"):
            memory.rise(runner.rehearse)
        over = memory.peak() - launch.line
        fitting = least(blocks - max(0, -(-over // block_bytes)))
        if fitting == blocks:
            counted = replace(counted, runtime=memory.runtime_bytes(counted))
            ledger = Ledger(memory, counted)
            _tell(launch, ledger)
            return runner, ledger
        blocks = fitting
    raise MemoryEstimateExceeded(
        f"{elsewhere / GIB:.3f} GiB are in use without the KV pool (weights {model.weight_bytes / GIB:.3f}, "
        f"activations {activations / GIB:.3f}), predicted were "
        f"{(launch.predicted.total - launch.predicted.kv_cache) / GIB:.3f}; the line of "
        f"{launch.line / GIB:.3f} GiB has no room for the {fewest * block_bytes / GIB:.3f} GiB one sequence "
        f"of {launch.max_context_tokens} tokens takes"
    )


@contextmanager
def _timed(part: str) -> Iterator[None]:
    """Say how long a part of the warm-up took."""
    began = time.monotonic()
    yield
    say("WarmUp", part=part, milliseconds=round(1000 * (time.monotonic() - began)))


def _runner(launch: Launch, model: Decoder, blocks: int) -> ModelRunner:
    cache = KVCache(
        model.share,
        blocks=blocks,
        block_size=launch.kv_block_size,
        dtype=DTYPES[launch.kv_cache],
        device=model.device,
    )
    return ModelRunner(
        model,
        cache,
        max_sequences=launch.max_concurrent_sequences,
        max_batched_tokens=launch.max_batched_tokens,
        max_context_tokens=launch.max_context_tokens,
    )


def _tell(launch: Launch, ledger: Ledger) -> None:
    """Each category as it was predicted and as it is, MiB."""
    measured = ledger.report().bytes
    for category in type(measured).model_fields:
        predicted = getattr(launch.predicted, category, 0)
        found = getattr(measured, category)
        say("Memory", category=category, predicted_mib=predicted // MIB, measured_mib=found // MIB)
