"""Runs the engine's own scheduler and runner step by step, so that a test can look at every logit."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import SamplingParams, Sequence, TokenEvent
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.models.decoder import Decoder


def sequence(prompt: tuple[int, ...], *, name: str = "s", **params: object) -> Sequence:
    """A sequence that tells nobody."""
    settings = SamplingParams(**{"max_tokens": 64, "temperature": 0.0, **params})  # type: ignore[arg-type]

    def ignore(event: TokenEvent) -> None:
        del event

    return Sequence(id=name, prompt=prompt, params=settings, emit=ignore)


def paged(
    model: Decoder, *, blocks: int, block_size: int = 16, dtype: torch.dtype | None = None
) -> ModelRunner:
    """A runner with a KV pool in `dtype`, or in the model's own precision."""
    cache = KVCache(
        model.share,
        blocks=blocks,
        block_size=block_size,
        dtype=dtype or model.dtype,
        device=torch.device("cpu"),
    )
    return ModelRunner(model, cache, max_sequences=8, max_batched_tokens=256, max_context_tokens=cache.tokens)


def steps(
    runner: ModelRunner, sequences: list[Sequence], *, max_batched_tokens: int
) -> Iterator[tuple[Sequence, torch.Tensor]]:
    """Every sequence that awaits a token, with its logits. The consumer appends the token."""
    scheduler = Scheduler(
        BlockPool(runner.cache.blocks, runner.cache.block_size),
        max_sequences=len(sequences),
        max_batched_tokens=max_batched_tokens,
    )
    for waiting in sequences:
        scheduler.add(waiting)
    while scheduler.running or scheduler.waiting:
        step = scheduler.schedule()
        logits = runner.logits(step).float()
        scheduler.check_integrity()
        completed = [scheduled.sequence for scheduled in step if scheduled.completes]
        for done, row in zip(completed, logits, strict=True):
            yield done, row
            if len(done.generated) >= done.params.max_tokens:
                scheduler.remove(done)
    assert scheduler.pool.used == 0
