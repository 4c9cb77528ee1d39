"""Chooses tokens from logits, on the device, without a word from it.

What every row needs (temperature, seed) is one kernel, `kernels.ops.sample`: noise is counted from (seed,
position), so a seed gives the same answer whatever else is in the batch. What few rows ask for (penalties,
bias, top-k and the like, log probabilities) is done for those rows alone, and the host knows which they are;
a loop over rows was the alternative and is slower than the model from a dozen rows on.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll_worker.engine.guide import Allowed
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.sequence import SamplingParams
from plimsoll_worker.kernels import ops

ROWS_AT_A_TIME = 32
"""Rows that are sorted or penalised together: a sort alone takes six times the memory of its logits."""

TokensOf = Callable[[Ordered[Scheduled]], Tensor]
"""Tokens of sequences up to the one to be sampled, (rows, longest); what is behind a sequence's end is any
token."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What every row is drawn with, on the device."""

    temperatures: Tensor
    """(rows) FP32; 0 is greedy."""
    seeds: Tensor
    """(rows) int64"""
    positions: Tensor
    """(rows) int64: the place in its sequence of the token to be drawn."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen, on the device."""

    tokens: Tensor
    """(rows) int64"""
    logprobs: dict[int, tuple[Tensor, Tensor, Tensor]]
    """Of the rows that asked: the chosen token's (), the likeliest ones' (n), those tokens (n)."""


def sampling_position(scheduled: Scheduled) -> int:
    """Index, in its sequence, of the token that a step samples."""
    return scheduled.start + scheduled.count


def temperature_of(params: SamplingParams) -> float:
    """As `ops.sample` takes it: 0 is greedy."""
    return 0.0 if params.greedy else params.temperature


class Sampler:
    """The sampling rules of SamplingParams over a batch of logits."""

    def __init__(self, device: torch.device, tokens_of: TokensOf) -> None:
        self._device = device
        self._tokens_of = tokens_of

    def __call__(self, logits: Tensor, rows: Ordered[Scheduled], noise: Noise) -> Chosen:
        """A token for each row of logits (rows or more, vocabulary); what is behind `rows` is padding."""
        params = [scheduled.sequence.params for scheduled in rows]
        raw = logits
        if not all(each.plain or _only_tells(each) for each in params):
            logits = logits.to(torch.float32, copy=True)
            self._bias(logits, rows)
            self._penalize(logits, rows)
            self._constrain(logits, rows)
            self._filter(logits, rows)
        tokens = draw(logits, noise)
        return Chosen(tokens, self._tell(raw, tokens, params))

    def _bias(self, logits: Tensor, rows: Ordered[Scheduled]) -> None:
        at: list[int] = []
        added: list[float] = []
        for row, scheduled in enumerate(rows):
            params, sequence = scheduled.sequence.params, scheduled.sequence
            first = row * logits.shape[1]
            at += [first + token for token in params.logit_bias]
            added += params.logit_bias.values()
            if sampling_position(scheduled) - len(sequence.prompt) < params.min_tokens:
                at += [first + token for token in params.stop_token_ids]
                added += [-torch.inf] * len(params.stop_token_ids)
        if at:
            flat = logits.view(-1)
            flat.index_add_(0, self._put(at, torch.int64), self._put(added, torch.float32))

    def _penalize(self, logits: Tensor, rows: Ordered[Scheduled]) -> None:
        asking = [row for row, scheduled in enumerate(rows) if scheduled.sequence.params.penalised]
        for first in range(0, len(asking), ROWS_AT_A_TIME):
            self._penalize_some(logits, rows, asking[first : first + ROWS_AT_A_TIME])

    def _penalize_some(self, logits: Tensor, rows: Ordered[Scheduled], chosen: list[int]) -> None:
        asking = [rows[row] for row in chosen]
        params = [scheduled.sequence.params for scheduled in asking]
        tokens = self._tokens_of(asking).to(torch.int64)
        place = torch.arange(tokens.shape[1], device=self._device)
        prompt = self._put([len(scheduled.sequence.prompt) for scheduled in asking], torch.int64)[:, None]
        end = self._put([sampling_position(scheduled) for scheduled in asking], torch.int64)[:, None]
        in_prompt, in_answer = place < prompt, (place >= prompt) & (place < end)
        shape = (len(asking), logits.shape[1])
        # Adding, not setting: behind a sequence's end lies any token, and it may be one of the prompt's.
        of_prompt = torch.zeros(shape, dtype=torch.int32, device=self._device)
        of_prompt.scatter_add_(1, tokens, in_prompt.to(torch.int32))
        of_answer = torch.zeros(shape, dtype=torch.int32, device=self._device)
        of_answer.scatter_add_(1, tokens, in_answer.to(torch.int32))
        index = self._put(chosen, torch.int64)
        part = logits.index_select(0, index)
        ops.penalize(
            part,
            torch.arange(len(asking), device=self._device),
            (of_prompt > 0).to(torch.uint8),
            of_answer,
            self._put([each.repetition_penalty for each in params], torch.float32),
            self._put([each.presence_penalty for each in params], torch.float32),
            self._put([each.frequency_penalty for each in params], torch.float32),
        )
        logits.index_copy_(0, index, part)

    def _constrain(self, logits: Tensor, rows: Ordered[Scheduled]) -> None:
        asking = [(row, part.allowed) for row, part in enumerate(rows) if part.allowed is not None]
        for first in range(0, len(asking), ROWS_AT_A_TIME):
            chosen, masks = zip(*asking[first : first + ROWS_AT_A_TIME], strict=True)
            index = self._put(chosen, torch.int64)
            allowed = self._bits(masks)[:, : logits.shape[1]]
            part = logits.index_select(0, index).masked_fill_(allowed == 0, -torch.inf)
            logits.index_copy_(0, index, part)

    def _bits(self, masks: Ordered[Allowed]) -> Tensor:
        """(rows, tokens) uint8, 0 or 1, of a bit for each token."""
        packed = self._send(torch.frombuffer(bytearray(b"".join(masks)), dtype=torch.uint8))
        places = torch.arange(8, dtype=torch.uint8, device=self._device)
        return (packed.view(len(masks), -1, 1) >> places & 1).flatten(1)

    def _filter(self, logits: Tensor, rows: Ordered[Scheduled]) -> None:
        asking = [row for row, scheduled in enumerate(rows) if scheduled.sequence.params.filtered]
        for first in range(0, len(asking), ROWS_AT_A_TIME):
            self._filter_some(logits, rows, asking[first : first + ROWS_AT_A_TIME])

    def _filter_some(self, logits: Tensor, rows: Ordered[Scheduled], chosen: list[int]) -> None:
        params = [rows[row].sequence.params for row in chosen]
        vocabulary = logits.shape[1]
        kept = [min(each.top_k, vocabulary) if each.top_k > 0 else vocabulary for each in params]
        index = self._put(chosen, torch.int64)
        part = keep_likely(
            logits.index_select(0, index),
            temperature=self._put([each.temperature for each in params], torch.float32),
            top_k=self._put(kept, torch.int64),
            top_p=self._put([each.top_p for each in params], torch.float32),
            min_p=self._put([each.min_p for each in params], torch.float32),
            most=max(kept),
        )
        logits.index_copy_(0, index, part)

    def _tell(
        self, logits: Tensor, tokens: Tensor, params: Ordered[SamplingParams]
    ) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        told = {}
        for row, each in enumerate(params):
            if each.logprobs is not None:
                logprobs = torch.log_softmax(logits[row], dim=-1, dtype=torch.float32)
                likeliest = logprobs.topk(each.logprobs)
                chosen = logprobs.index_select(0, tokens[row : row + 1])[0]
                told[row] = (chosen, likeliest.values, likeliest.indices)
        return told

    def _put(self, values: Ordered[float] | Ordered[int], dtype: torch.dtype) -> Tensor:
        return self._send(torch.tensor(values, dtype=dtype))

    def _send(self, values: Tensor) -> Tensor:
        """A small tensor of the host on the device; from pinned memory, so that nobody waits."""
        if self._device.type == "cpu":
            return values
        return values.pin_memory().to(self._device, non_blocking=True)


def draw(logits: Tensor, noise: Noise) -> Tensor:
    """A token for each row of logits (rows, vocabulary) by temperature and seed alone → (rows) int64."""
    if ops.on_gpu(logits):
        # Greedy rows too: a tie must fall alike in every batch, with and without graphs.
        return ops.sample(logits, noise.temperatures, noise.seeds, noise.positions)
    # Row by row: in plain PyTorch it takes a dozen times the logits' memory, and greedy rows need none of it.
    tokens = logits.argmax(dim=-1)
    for row, temperature in enumerate(noise.temperatures.tolist()):
        if temperature > 0:
            one = slice(row, row + 1)
            tokens[one] = ops.sample(
                logits[one], noise.temperatures[one], noise.seeds[one], noise.positions[one]
            )
    return tokens


def _only_tells(params: SamplingParams) -> bool:
    """Whether logprobs are all that is asked for beside temperature and seed."""
    return not (
        params.penalised
        or params.filtered
        or params.logit_bias
        or params.min_tokens > 0
        or params.grammar is not None
    )


def keep_likely(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, most: int
) -> Tensor:
    """logits (rows, vocabulary) FP32 with -inf for what must not be drawn; the other arguments are (rows).

    In this order: the `top_k` likeliest tokens; of those the fewest whose probabilities at `temperature` sum
    to `top_p` (Holtzman et al. 2019, arXiv:1904.09751); of those the ones with at least `min_p` of the
    likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082). `most`: the largest of top_k.
    """
    ordered, order = logits.topk(most) if most < logits.shape[1] else logits.sort(dim=-1, descending=True)
    rank = torch.arange(most, device=logits.device)
    scaled = (ordered / temperature[:, None]).masked_fill(rank >= top_k[:, None], -torch.inf)
    probabilities = torch.softmax(scaled, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = (before >= top_p[:, None]) | (probabilities < min_p[:, None] * probabilities[:, :1])
    dropped |= rank >= top_k[:, None]
    dropped[:, 0] = False
    return torch.full_like(logits, -torch.inf).scatter(1, order, ordered.masked_fill(dropped, -torch.inf))
