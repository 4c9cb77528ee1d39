"""Turns a scheduled step into tensors, runs the model, returns logits.

The scheduler knows nothing of tensors and the model nothing of sequences; a runner with CUDA graphs or
kernels of its own replaces this module alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

import torch

from plimsoll_worker.engine.in_flight import InFlight, LogprobRow
from plimsoll_worker.engine.sampler import Sampler, sampling_position
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.layers.attention import Span, span
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.models.llama import Batch, LlamaModel


class ModelRunner:
    """A model and its KV cache."""

    def __init__(self, model: LlamaModel, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.steps_ahead = 0
        self._sample = Sampler(model.device, self._tokens_of)

    @torch.inference_mode()
    def launch(self, step: Ordered[Scheduled]) -> InFlight:
        """Compute a step and sample a token for each sequence that it completes."""
        rows = [scheduled for scheduled in step if scheduled.completes]
        chosen = self._sample(self.run(step), rows)
        told = {row: LogprobRow(*(part.cpu() for part in parts)) for row, parts in chosen.logprobs.items()}
        return InFlight([scheduled.sequence for scheduled in rows], chosen.tokens.cpu(), told, None)

    def _tokens_of(self, rows: Ordered[Scheduled]) -> torch.Tensor:
        longest = max(sampling_position(scheduled) for scheduled in rows)
        tokens = [scheduled.sequence.tokens for scheduled in rows]
        padded = [known + [0] * (longest - len(known)) for known in tokens]
        return torch.tensor(padded, device=self.model.device)

    @torch.inference_mode()
    def run(self, step: Ordered[Scheduled]) -> torch.Tensor:
        """Compute a step. Returns the logits (rows, vocabulary) of the sequences that it completes, in
        order."""
        parts = [
            (
                scheduled.sequence.tokens,
                scheduled.start,
                scheduled.count,
                scheduled.sequence.block_table,
            )
            for scheduled in step
        ]
        wanted = [index for index, scheduled in enumerate(step) if scheduled.completes]
        logits: torch.Tensor = self.model(self._batch(parts, wanted), self.cache)
        return logits

    @torch.inference_mode()
    def rehearse(self, *, tokens: int, context: int, sequences: int, layers: int | None = None) -> None:
        """Run the step that takes the most memory: `tokens` new tokens at the end of contexts of `context`
        tokens, and the logits of `sequences` rows. Whatever the cache holds is overwritten.

        One layer tells as much as all, because each reuses the buffers of the one before.
        """
        blocks = list(range(-(-context // self.cache.block_size)))
        parts = []
        while tokens > 0:
            count = min(tokens, context)
            parts.append(([0] * context, context - count, count, blocks))
            tokens -= count
        self.model(self._batch(parts, [0] * sequences), self.cache, layers=layers)

    def _batch(self, parts: Ordered[tuple[list[int], int, int, list[int]]], wanted: list[int]) -> Batch:
        """`parts`: all tokens, how many are computed, how many to compute, block table."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[torch.Tensor] = []
        spans: list[Span] = []
        window = self.model.config.sliding_window
        for tokens, computed, count, table in parts:
            context = self._slots(table, computed + count)
            spans.append(span(len(token_ids), count, context, window))
            slots.append(context[computed:])
            token_ids.extend(tokens[computed : computed + count])
            positions.extend(range(computed, computed + count))
        device = self.model.device
        return Batch(
            token_ids=torch.tensor(token_ids, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.cat(slots),
            spans=tuple(spans),
            logits_rows=torch.tensor(
                [spans[index].first + spans[index].length - 1 for index in wanted],
                dtype=torch.long,
                device=device,
            ),
        )

    def _slots(self, table: list[int], tokens: int) -> torch.Tensor:
        """Where the first `tokens` tokens of a sequence lie in the cache."""
        size = self.cache.block_size
        blocks = torch.tensor(table[: -(-tokens // size)], device=self.model.device)
        return (blocks[:, None] * size + torch.arange(size, device=self.model.device)).flatten()[:tokens]
