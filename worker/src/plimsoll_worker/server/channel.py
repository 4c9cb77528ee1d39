"""Messages between the engine's process and the server's, over a socket pair.

Whoever sends puts a message on a queue and goes on: a thread takes all that wait there, writes them at once
and takes the next. So the engine's thread waits neither for the socket nor for the server, and the tokens of
a step cross as one. Messages are pickled: both ends are the same program, started by the same command.
"""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any


class Channel:
    """One end. `put` may be called from any thread, and from signal handlers."""

    def __init__(
        self, end: socket.socket, hear: Callable[[list[Any]], None], lost: Callable[[], None]
    ) -> None:
        """`hear` gets messages in their order, `lost` is called when no more will come; both in a thread of
        the channel."""
        self._connection = Connection(end.detach())
        self._hear = hear
        self._lost = lost
        self._queue: SimpleQueue[Any] = SimpleQueue()

    def start(self) -> None:
        for work in (self._write, self._read):
            threading.Thread(target=work, name=f"channel{work.__name__}", daemon=True).start()

    def put(self, message: object) -> None:
        self._queue.put(message)

    def _write(self) -> None:
        try:
            while True:
                messages = [self._queue.get(), *self._waiting()]
                self._connection.send_bytes(pickle.dumps(messages, pickle.HIGHEST_PROTOCOL))
        except OSError:
            return  # the reading thread finds the same, and tells

    def _waiting(self) -> Iterable[Any]:
        try:
            while True:
                yield self._queue.get_nowait()
        except Empty:
            return

    def _read(self) -> None:
        try:
            while True:
                messages = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - from our own other half
                self._hear(messages)
        except (EOFError, OSError):
            pass  # the other end is gone: that is what `lost` tells
        finally:
            self._lost()
