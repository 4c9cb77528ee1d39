"""What the device remembers of running sequences from step to step: their tokens and their block tables, a
row for each slot.

So a decode step brings a few numbers a sequence, not its block table, and takes the token it goes on with
from where the step before left it. Where another stage samples, that token is brought too, once it is known.
The last row belongs to padding.
"""

from __future__ import annotations

from array import array

import numpy as np
import torch
from torch import Tensor

from plimsoll_worker.engine.sequence import Sequence
from plimsoll_worker.engine.staging import Staging


class SlotTables:
    """`slots` rows of up to `max_tokens` tokens in blocks of `block_size`."""

    def __init__(
        self, slots: int, max_tokens: int, block_size: int, device: torch.device, *, brings_tokens: bool
    ) -> None:
        """`brings_tokens`: whether sampled tokens come from another stage by way of the host."""
        self._brings_tokens = brings_tokens
        self.padding = slots
        self.width = max_tokens + 1
        """Tokens of a row: one is sampled behind the longest context."""
        self.pages = -(-max_tokens // block_size)
        self.tokens = torch.zeros((slots + 1, self.width), dtype=torch.int32, device=device)
        self.blocks = torch.zeros((slots + 1, self.pages), dtype=torch.int32, device=device)
        self._device = device
        self._owners: list[tuple[Sequence, int] | None] = [None] * (slots + 1)
        self._uploaded = [0] * (slots + 1)
        self._known = [0] * (slots + 1)
        """Tokens of each row that were brought from the host."""

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.blocks.nbytes

    def admit(self, sequence: Sequence) -> None:
        """See to it that the sequence's row is its own: all its known tokens and blocks."""
        slot, owner = sequence.slot, (sequence, sequence.admissions)
        if self._owners[slot] == owner:
            return
        self._owners[slot] = owner
        self._write(self.tokens[slot], sequence.tokens)
        self._write(self.blocks[slot], sequence.block_table)
        self._uploaded[slot] = len(sequence.block_table)
        self._known[slot] = len(sequence.tokens)

    def forget(self, slot: int) -> None:
        """Let the next `admit` write the row anew."""
        self._owners[slot] = None

    def grown(self, sequence: Sequence, places: list[int], blocks: list[int]) -> None:
        """Append the blocks that the row lacks: their places in the flat table, and what to put there."""
        slot, table = sequence.slot, sequence.block_table
        known = self._uploaded[slot]
        if len(table) > known:
            first = slot * self.pages
            places.extend(range(first + known, first + len(table)))
            blocks.extend(table[known:])
            self._uploaded[slot] = len(table)

    def learned(self, sequence: Sequence, places: list[int], tokens: list[int]) -> None:
        """Append the tokens that another stage has sampled and the row lacks: their places in the flat table,
        and themselves."""
        if not self._brings_tokens:
            return
        slot, found = sequence.slot, sequence.tokens
        known = self._known[slot]
        if len(found) > known:
            first = slot * self.width
            places.extend(range(first + known, first + len(found)))
            tokens.extend(found[known:])
            self._known[slot] = len(found)

    def write(self, staging: Staging, places: list[int], values: list[int]) -> tuple[Tensor, Tensor]:
        """Arrays for `apply_blocks` or `apply_tokens`."""
        return staging.put(places, torch.int64), staging.put(values, torch.int32)

    def apply_blocks(self, places: Tensor, blocks: Tensor) -> None:
        """Once the arrays are on the device."""
        self.blocks.view(-1).index_copy_(0, places, blocks)

    def apply_tokens(self, places: Tensor, tokens: Tensor) -> None:
        """Once the arrays are on the device."""
        self.tokens.view(-1).index_copy_(0, places, tokens)

    def _write(self, row: Tensor, values: list[int]) -> None:
        found = torch.from_numpy(np.frombuffer(array("i", values), dtype=np.int32).copy())
        if self._device.type == "cuda":
            found = found.pin_memory()
        row[: len(values)].copy_(found, non_blocking=True)
