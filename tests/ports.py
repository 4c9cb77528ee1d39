"""Ports for the processes that tests start.

A port that was free a moment ago is somebody else's a few seconds later, when the process has imported what
it needs: several test runs go beside each other, and every connection takes a port too.
"""

from __future__ import annotations

import socket
import weakref


def held_port(owner: object) -> int:
    """A port of 127.0.0.1 that nobody else is given as long as `owner` lives. A server may listen on it.

    It is bound and not listened on. Servers bind with SO_REUSEADDR, which Linux then allows (socket(7)); who
    asks for any free port does not get it.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    weakref.finalize(owner, held.close)
    return int(held.getsockname()[1])
