"""A launched step whose tokens are not read yet.

The device copies them to pinned host memory and records an event; reading waits for that event alone, not for
whatever was launched behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Ordered
from typing import TYPE_CHECKING, Protocol

from plimsoll_worker.engine.sequence import Sequence, TokenLogprobs

if TYPE_CHECKING:  # the server's process knows engines and imports no torch
    from torch import Tensor


class Event(Protocol):
    """A point in the device's queue, as torch.cuda.Event has it."""

    def synchronize(self) -> None:
        """Wait until the device has come there."""
        ...


class InFlight:
    """The sequences that a step completes, and where their tokens will be."""

    def __init__(
        self,
        sequences: Ordered[Sequence],
        tokens: Tensor,
        logprobs: Mapping[int, LogprobRow],
        event: Event | None,
    ) -> None:
        """`tokens` (rows) on the host, filled once `event` is reached (None: already); `logprobs` by row."""
        self._sequences = sequences
        self._tokens = tokens
        self._logprobs = logprobs
        self._event = event

    def tokens(self) -> Iterator[tuple[Sequence, int, TokenLogprobs | None]]:
        """Wait for the step; each completed sequence with its token."""
        if self._event is not None:
            self._event.synchronize()
        chosen: list[int] = self._tokens.tolist()
        for row, (sequence, token) in enumerate(zip(self._sequences, chosen, strict=True)):
            told = self._logprobs.get(row)
            yield sequence, token, None if told is None else told.read()


class LogprobRow:
    """Log probabilities of one row, on their way to the host."""

    def __init__(self, chosen: Tensor, values: Tensor, tokens: Tensor) -> None:
        """chosen (), values (n) and tokens (n), on the host."""
        self._chosen, self._values, self._tokens = chosen, values, tokens

    def read(self) -> TokenLogprobs:
        """Call once the step is done."""
        pairs = zip(self._tokens.tolist(), self._values.tolist(), strict=True)
        return TokenLogprobs(float(self._chosen), tuple(pairs))
