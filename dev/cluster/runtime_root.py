"""containerd's root folders, kept between clusters so that images stay.

One root serves one containerd at a time, so there is a pool: a cluster takes the first free root and holds
a lock on it as long as its node lives. The lock is a file descriptor that the node's holder inherits: when
it ends, however it ends, the kernel lets the lock go.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dev.cluster.paths import cache_home


@dataclass(frozen=True)
class Claim:
    """A root folder and the open lock on it."""

    root: Path
    descriptor: int


@contextmanager
def claimed() -> Iterator[Claim]:
    """Claim the first free root. The claim outlasts this context in every process that inherited the
    descriptor.
    """
    pool = cache_home() / "containerd"
    pool.mkdir(parents=True, exist_ok=True)
    for number in count():
        descriptor = os.open(pool / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            root = pool / str(number)
            root.mkdir(exist_ok=True)
            yield Claim(root, descriptor)
        finally:
            os.close(descriptor)
        return
