"""A TCP connection to another stage, cut into whole messages.

Whoever sends puts a message on a queue and goes on; a thread writes it while the stage computes its next
step, another reads. That the far end is gone is found by the kernel: it closes the connections of a process
that ends, and asks a machine that says nothing whether it is there. Heartbeats of our own were the
alternative; a thread that sends them waits for Python's lock, which reading weights may hold for longer than
any limit worth having.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

SILENT_SECONDS = 8
"""After this time without an answer from the far machine the connection is lost: the promise is to end within
10 s."""
LONGEST_MESSAGE = 1 << 32
"""Bytes. Hidden states of 16,384 tokens of the widest models take an eighth of it."""

_LENGTH = struct.Struct("!Q")
Bytes = bytes | bytearray | memoryview


class LineLost(Exception):
    """The far end is gone, or says what is no message."""


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find a far end that is gone without a word, and send small messages at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = SILENT_SECONDS // 4
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    # Keep-alive is not asked while bytes of ours are unacknowledged; this is.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENT_SECONDS)


def send(connection: socket.socket, *parts: Bytes) -> None:
    """One message. Raises OSError."""
    views = [memoryview(part).cast("B") for part in parts]
    length = _LENGTH.pack(sum(view.nbytes for view in views))
    if len(views) == 1 and views[0].nbytes < 65536:
        connection.sendall(length + bytes(views[0]))
        return
    connection.sendall(length)
    for view in views:
        connection.sendall(view)


def receive(connection: socket.socket, longest: int = LONGEST_MESSAGE) -> bytearray:
    """The next message. Raises LineLost at the end and for one that is too long, OSError."""
    [length] = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > longest:
        raise LineLost(f"a message of {length} bytes was announced, {longest} are the most")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    found = bytearray(count)
    view = memoryview(found)
    while view:
        read = connection.recv_into(view)
        if not read:
            raise LineLost("the connection was closed")
        view = view[read:]
    return found


class Line:
    """One end, once both sides know whom they talk to."""

    def __init__(self, connection: socket.socket, peer: int) -> None:
        """`peer`: the stage at the far end."""
        self.peer = peer
        self._connection = connection
        self._queue: SimpleQueue[tuple[Bytes, ...] | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name=f"to-stage-{peer}", daemon=True)
        self._writer.start()

    def listen(self, hear: Callable[[bytearray], None], lost: Callable[[int, str], None]) -> None:
        """Call `hear` with each message from now on, and `lost` with stage and reason when no more will come;
        both in a thread of the line."""
        work: dict[str, Any] = {"target": self._read, "args": (hear, lost), "daemon": True}
        threading.Thread(name=f"from-stage-{self.peer}", **work).start()

    def put(self, *parts: Bytes) -> None:
        """Send a message, as soon as those before it are sent. What it lies in must not change. From any
        thread, and from signal handlers."""
        self._queue.put(parts)

    def next(self, *, within: float) -> bytearray:
        """Wait so many seconds for a message; before `listen`. Raises LineLost, OSError (TimeoutError)."""
        self._connection.settimeout(within)
        try:
            return receive(self._connection)
        finally:
            self._connection.settimeout(None)

    def close(self) -> None:
        """Send what waits, then hang up."""
        self._queue.put(None)
        self._writer.join()
        self._connection.close()

    def _write(self) -> None:
        try:
            while (parts := self._queue.get()) is not None:
                send(self._connection, *parts)
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the reading side finds the same, and tells

    def _read(self, hear: Callable[[bytearray], None], lost: Callable[[int, str], None]) -> None:
        try:
            while True:
                hear(receive(self._connection))
        except (OSError, LineLost) as error:
            lost(self.peer, str(error))
