"""One process decides each step, all others mirror it: what must be said so that they launch the same.

The leader's scheduler owns sequences, blocks and slots. A mirror knows of a sequence what its runner looks
at (`SlotTables`, `step_inputs`, `Sampler`) and nothing else, so a decode step is 16 bytes a row, and the
tokens, blocks and sampling parameters of a sequence are said once for each time it is given a slot. Nobody
says that a sequence has ended: its slot's next owner does.

A scheduler in every process, fed with the same requests, was the alternative; it must also be fed with the
same tokens at the same time, or the steps part without anybody noticing.

    message   counts of what follows (5 × uint32)
              parts       slot, start, count, completes       int32 each
              growth      slot, block                         int32 each; blocks a slot has got since
              tokens      slot, token                         int32 each; where another stage samples
              admissions  slot, prompt, tokens, blocks, bytes int32 each; seed int64; then what was counted
              masks       part, bytes                         int32 each; a bit for each token
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Sequence as Ordered
from dataclasses import asdict
from typing import Any

from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.sequence import SamplingParams, Sequence, TokenEvent

_COUNTS = struct.Struct("<5I")
_ADMISSION = struct.Struct("<5iq")
_MASK = struct.Struct("<2i")
_PART, _PAIR = 4, 2
"""int32 of a part, and of a block or token with its slot."""

assert sys.byteorder == "little", "every machine that torch's CUDA wheels run on is"


class OutOfStep(Exception):
    """A message that does not go on from the one before: some have been lost, or it is none."""


class Orders:
    """The leader's side. One for all mirrors; each of them gets every message."""

    def __init__(self, *, tells_tokens: bool = False) -> None:
        """`tells_tokens`: whether mirrors must hear what is sampled, because their devices do not."""
        self._tells_tokens = tells_tokens
        self._owners: dict[int, tuple[Sequence, int]] = {}
        """Sequence and admission, by slot."""
        self._told: dict[int, tuple[int, int]] = {}
        """How many of its blocks and tokens have been told, by slot."""

    def encode(self, step: Ordered[Scheduled]) -> bytes:
        """What mirrors must hear of a step, to be called when it is launched: what is not yet known then is
        on the mirrors' devices too."""
        parts, growth, learned = array("i"), array("i"), array("i")
        admissions: list[bytes] = []
        masks: list[bytes] = []
        for index, part in enumerate(step):
            sequence = part.sequence
            slot, table, tokens = sequence.slot, sequence.block_table, sequence.tokens
            owner = self._owners.get(slot)
            if owner is None or owner[0] is not sequence or owner[1] != sequence.admissions:
                self._owners[slot] = (sequence, sequence.admissions)
                admissions.append(_admission(sequence))
            else:
                blocks, known = self._told[slot]
                for block in table[blocks:]:
                    growth.extend((slot, block))
                if self._tells_tokens:
                    for token in tokens[known:]:
                        learned.extend((slot, token))
            self._told[slot] = len(table), len(tokens)
            parts.extend((slot, part.start, part.count, part.completes))
            if part.allowed is not None:
                masks.append(_MASK.pack(index, len(part.allowed)) + part.allowed)
        counts = (len(step), len(growth) // _PAIR, len(learned) // _PAIR, len(admissions), len(masks))
        arrays = (each.tobytes() for each in (parts, growth, learned))
        return b"".join((_COUNTS.pack(*counts), *arrays, *admissions, *masks))


class Mirror:
    """Makes the leader's steps again."""

    def __init__(self) -> None:
        self._running: dict[int, Sequence] = {}
        """By slot."""

    def apply(self, message: bytes | bytearray | memoryview) -> list[Scheduled]:
        """The step, for `ModelRunner.launch`. Its sequences are this side's own: tokens as they were when the
        slot was given, and what was told since; nobody to emit to. Raises OutOfStep."""
        try:
            return self._apply(_Reader(memoryview(message)))
        except (KeyError, struct.error, ValueError, TypeError) as error:
            raise OutOfStep(f"a step of {len(message)} bytes makes no sense: {error!r}") from error

    def _apply(self, reader: _Reader) -> list[Scheduled]:
        parts, growth, learned, admissions, masks = reader.unpack(_COUNTS)
        scheduled = reader.integers(parts * _PART)
        grown, sampled = reader.integers(growth * _PAIR), reader.integers(learned * _PAIR)
        for _ in range(admissions):
            self._admit(reader)
        for slot, block in zip(grown[::2], grown[1::2], strict=True):
            self._running[slot].block_table.append(block)
        for slot, token in zip(sampled[::2], sampled[1::2], strict=True):
            self._running[slot].tokens.append(token)
        allowed = {}
        for _ in range(masks):
            index, size = reader.unpack(_MASK)
            allowed[index] = reader.bytes(size)
        if not reader.ended:
            raise ValueError("there is more than was announced")
        rows = (scheduled[first : first + _PART] for first in range(0, len(scheduled), _PART))
        return [
            Scheduled(self._running[slot], start, count, bool(completes), allowed.get(index))
            for index, (slot, start, count, completes) in enumerate(rows)
        ]

    def _admit(self, reader: _Reader) -> None:
        slot, prompt, tokens, blocks, size, seed = reader.unpack(_ADMISSION)
        known, table = reader.integers(tokens).tolist(), reader.integers(blocks).tolist()
        params = _parameters(reader.bytes(size))
        sequence = Sequence(id=f"slot {slot}", prompt=tuple(known[:prompt]), params=params, emit=_to_nobody)
        sequence.tokens, sequence.block_table = known, table
        sequence.slot, sequence.seed = slot, seed
        self._running[slot] = sequence


class _Reader:
    """A message, from its beginning on."""

    def __init__(self, message: memoryview) -> None:
        self._message = message
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at == len(self._message)

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.bytes(form.size))

    def integers(self, count: int) -> array[int]:
        found = array("i")
        found.frombytes(self.bytes(count * found.itemsize))
        return found

    def bytes(self, size: int) -> bytes:
        end = self._at + size
        if not self._at <= end <= len(self._message):
            raise ValueError(f"{size} bytes are announced, {len(self._message) - self._at} are left")
        found = bytes(self._message[self._at : end])
        self._at = end
        return found


def _admission(sequence: Sequence) -> bytes:
    told = asdict(sequence.params)
    told["stop_token_ids"] = sorted(sequence.params.stop_token_ids)
    told["logit_bias"] = list(sequence.params.logit_bias.items())
    params = json.dumps(told).encode()
    head = _ADMISSION.pack(
        sequence.slot,
        len(sequence.prompt),
        len(sequence.tokens),
        len(sequence.block_table),
        len(params),
        sequence.seed,
    )
    return head + array("i", sequence.tokens).tobytes() + array("i", sequence.block_table).tobytes() + params


def _parameters(told: bytes) -> SamplingParams:
    found = json.loads(told)
    found["stop_token_ids"] = frozenset(found["stop_token_ids"])
    found["logit_bias"] = dict(found["logit_bias"])
    return SamplingParams(**found)


def _to_nobody(event: TokenEvent) -> None:
    del event
