"""The first process of a node's process namespace: it owns orphans and its end is the end of all inside.

Run by path with `python -I -S`, so it imports nothing of ours. `sleep` would not do: it never collects the
orphans that container shims leave to process 1, and as process 1 it would ignore SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that it interrupts `pause`
    while True:
        signal.pause()
        collect()


def collect() -> None:
    """Collect every ended child there is."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
