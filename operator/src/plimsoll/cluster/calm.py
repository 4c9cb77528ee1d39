"""Whether there is a rush: decisions and pods to write, which everything else gives way to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RUSH_SECONDS = 20.0
"""How long what nobody waits for gives way: a worker takes longer to start. When the API server is the
bottleneck (two cores take some 250 writes a second, their effects included), each of them delays a pod."""


class Calm:
    """Set while no round has decisions to write."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._calm = threading.Event()
        self._calm.set()

    def tell(self, *, urgent: bool) -> None:
        (self._calm.clear if urgent else self._calm.set)()

    def wait(self, since: float) -> None:
        """Until it is calm, at most RUSH_SECONDS after `since` on the monotonic clock."""
        if (left := since + RUSH_SECONDS - self._monotonic()) > 0:
            self._calm.wait(left)
