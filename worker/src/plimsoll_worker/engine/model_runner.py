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
from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.models.decoder import Decoder


class ModelRunner:
    """A model and its KV cache."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
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
        return self._compute(parts, wanted, layers=None)

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
        self._compute(parts, [0] * sequences, layers=layers)

    def _compute(
        self, parts: Ordered[tuple[list[int], int, int, list[int]]], wanted: list[int], *, layers: int | None
    ) -> torch.Tensor:
        """`parts`: all tokens, how many are computed, how many to compute, block table. Returns the logits
        (rows, vocabulary) in FP32 after the last token of each `wanted` part."""
        device, size = self.model.device, self.cache.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for tokens, computed, count, table in parts:
            new = range(computed, computed + count)
            token_ids.extend(tokens[computed : computed + count])
            positions.extend(new)
            slots.extend(table[position // size] * size + position % size for position in new)
            starts.append(len(token_ids))
        width = max(len(table) for *_, table in parts)
        tables = [table + [0] * (width - len(table)) for *_, table in parts]
        contexts = [computed + count for _, computed, count, _ in parts]
        batch = AttentionBatch(
            block_tables=torch.tensor(tables, dtype=torch.int32, device=device),
            context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
            query_start=torch.tensor(starts, dtype=torch.int32, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            max_query_len=max(count for _, _, count, _ in parts),
            max_context_len=max(contexts),
            block_size=size,
        )
        hidden = self.model(torch.tensor(token_ids, device=device), batch, self.cache, layers=layers)
        last_rows = torch.tensor([starts[index + 1] - 1 for index in wanted], dtype=torch.long, device=device)
        return self.model.logits(hidden.index_select(0, last_rows)).float()
