"""Has every process of a replica launch what this one launches."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ordered

from plimsoll_worker.engine.engine import Runner
from plimsoll_worker.engine.in_flight import InFlight
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.parallel.mirror import Orders


class Leading:
    """A runner with mirrors."""

    def __init__(self, runner: Runner, tell: Callable[[bytes], None], *, tells_tokens: bool = False) -> None:
        """`tell` passes a message to all mirrors, in order; `tells_tokens` as `Orders` has it."""
        self._runner = runner
        self._tell = tell
        self._orders = Orders(tells_tokens=tells_tokens)

    @property
    def steps_ahead(self) -> int:
        return self._runner.steps_ahead

    def launch(self, step: Ordered[Scheduled]) -> InFlight:
        """On the mirrors first: they have the longer way."""
        self._tell(self._orders.encode(step))
        return self._runner.launch(step)
