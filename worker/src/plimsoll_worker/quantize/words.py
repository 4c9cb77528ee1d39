"""The tokens that a model is calibrated on: those of a text, or what it says itself when it is not asked.

A model's own words are as good for it as a sample of what it was trained on (Liu et al. 2023,
arXiv:2305.17888), and nothing has to be fetched or chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import SamplingParams, Sequence, TokenEvent
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.launch import Precision
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.checkpoint import Checkpoint
from plimsoll_worker.loading.weights import load_model

WINDOW = 512
"""Tokens of one text."""
AT_ONCE = 32
BLOCK = 16


def words_of(checkpoint: Checkpoint, text: str, tokens: int) -> list[Tensor]:
    """`tokens` of a text in windows, spread evenly over it. Raises ModelUnsupported for a text that has too
    few."""
    ids = checkpoint.tokenizer().encode(text)
    if len(ids) < WINDOW:
        raise ModelUnsupported(
            f"the text has {len(ids)} tokens, expected {WINDOW} at least; leave --text out to calibrate on"
            " the model's own words"
        )
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    return list(windows[:: max(1, len(windows) * WINDOW // tokens)])[: max(1, tokens // WINDOW)]


def own_words(checkpoint: Checkpoint, tokens: int, device: torch.device, seed: int = 0) -> list[Tensor]:
    """What the unquantized model says, drawn at temperature 1 behind a random token, in windows. The whole
    model is on `device` meanwhile."""
    gpu = device.type == "cuda"
    model = load_model(
        checkpoint,
        device=device,
        precision=Precision.BF16 if gpu else Precision.FP32,
        context=WINDOW,
    )
    texts = max(1, tokens // WINDOW)
    together = min(texts, AT_ONCE)
    cache = KVCache(
        model.share, blocks=together * WINDOW // BLOCK, block_size=BLOCK, dtype=model.dtype, device=device
    )
    runner = ModelRunner(
        model,
        cache,
        max_sequences=together,
        max_batched_tokens=WINDOW,
        max_context_tokens=WINDOW,
    )
    scheduler = Scheduler(
        BlockPool(cache.blocks, cache.block_size), max_sequences=together, max_batched_tokens=WINDOW
    )
    engine = Engine(runner, scheduler)
    firsts = random.Random(seed).choices(range(checkpoint.config.vocab_size), k=texts)  # noqa: S311
    said = [[first] for first in firsts]
    for number, text in enumerate(said):
        params = SamplingParams(max_tokens=WINDOW - 1, min_tokens=WINDOW - 1, seed=number)
        engine.submit(Sequence(f"words-{number}", tuple(text), params, _writer(text)))
    engine.settle()
    return [torch.tensor(text) for text in said]


def _writer(text: list[int]) -> Callable[[TokenEvent], None]:
    def write(event: TokenEvent) -> None:
        if event.token is not None:
            text.append(event.token)

    return write
