"""Hidden states on their way between a stage's device and its lines.

The thread that launches steps waits for no copy: the device writes into pinned memory in its own queue, and
another thread waits for that and sends; what came is put into pinned memory, and the device fetches it in its
queue too. So the next step is launched while this one is computed, with two buffers each way.

A copy that the host waits for was what it was before: between two steps of a stage the device then stood
still for as long as the host takes to launch one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch
from torch import Tensor

from plimsoll_worker.engine.in_flight import Event

BUFFERS = 2


class Crossing:
    """Both ways of one stage, as `ModelRunner.neighbours` has them. The first stage receives nothing and the
    last one sends nothing."""

    def __init__(
        self,
        came: SimpleQueue[bytearray] | None,
        put: Callable[[memoryview], None] | None,
        failed: Callable[[str], None],
        *,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`came`: messages of the stage before. `put` sends one to the stage after, in a thread; `failed`
        hears, in that thread, why nothing more can be sent. `shape` (tokens, hidden), `dtype`, `device`:
        what hidden states of the longest step are."""
        self._device = device

        def buffers(count: int) -> list[Tensor]:
            pinned = device.type == "cuda"
            return [torch.empty(shape, dtype=dtype, pin_memory=pinned) for _ in range(count)]

        self._came = came
        self._in = buffers(BUFFERS if came else 0)
        self._fetched: list[Event | None] = [None] * BUFFERS
        self._turn = 0
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        self._written: SimpleQueue[tuple[Tensor, int, Event | None] | None] = SimpleQueue()
        self._sending: threading.Thread | None = None
        if put is not None:
            for buffer in buffers(BUFFERS):
                self._free.put(buffer)
            self._sending = threading.Thread(target=self._send, args=(put, failed), daemon=True)
            self._sending.start()

    def receive(self, hidden: Tensor) -> None:
        """Fill hidden (tokens, hidden) with what the stage before has computed, once the device comes to
        it."""
        assert self._came is not None, "nothing comes before the first stage"
        came = torch.frombuffer(self._came.get(), dtype=hidden.dtype).view(hidden.shape)
        self._turn = (self._turn + 1) % BUFFERS
        if (fetched := self._fetched[self._turn]) is not None:
            fetched.synchronize()
        buffer = self._in[self._turn][: len(hidden)]
        buffer.copy_(came)
        hidden.copy_(buffer, non_blocking=True)
        self._fetched[self._turn] = self._mark()

    def send(self, hidden: Tensor) -> None:
        """Pass hidden (tokens, hidden) on, once it is computed. The next step may use its memory again."""
        buffer = self._free.get()
        buffer[: len(hidden)].copy_(hidden, non_blocking=True)
        self._written.put((buffer, len(hidden), self._mark()))

    def close(self) -> None:
        """Send what waits."""
        if self._sending:
            self._written.put(None)
            self._sending.join()

    def _mark(self) -> Event | None:
        """This point of the device's queue; None where there is no queue."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _send(self, put: Callable[[memoryview], None], failed: Callable[[str], None]) -> None:
        try:
            while (item := self._written.get()) is not None:
                buffer, tokens, written = item
                if written is not None:
                    written.synchronize()
                message = buffer[:tokens].clone()  # the line keeps it until it is sent
                self._free.put(buffer)
                put(message.view(torch.uint8).numpy().data.cast("B"))
        except RuntimeError as error:
            failed(f"hidden states cannot be read from the device: {error}")
