"""A pod's part in a replica of several pods, from the rendezvous to the farewell; nothing where the pod is
the whole replica.

The first stage is told to end by the kubelet, as any worker is, and takes the others along when it has
drained. Another stage that is told so passes it on and goes on computing: answers that run need it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from plimsoll_worker.engine.engine import Runner
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.errors import PeerLost
from plimsoll_worker.launch import Launch, LinkReport
from plimsoll_worker.parallel.leading import Leading
from plimsoll_worker.parallel.pipeline import Pipeline
from plimsoll_worker.parallel.preflight import preflight

Tell = Callable[[bytes], None]


class Stage:
    """One stage of a replica."""

    def __init__(self, launch: Launch, lost: Callable[[str], None]) -> None:
        """Meet the others. `lost` hears, in a thread, that one of them is gone. Raises RendezvousFailed,
        PeerLost, LaunchError."""
        self.link: LinkReport | None = None
        self._ranks = launch.tensor_parallel
        self._pipeline: Pipeline | None = None
        if launch.pipeline_parallel > 1:
            try:
                lines, self.link = preflight(launch)
            except PeerLost as error:
                lost(str(error))  # at once: there is nothing to finish
                raise
            self._pipeline = Pipeline(lines, lost, _end_this_one)

    def least(self, number: int) -> int:
        """The smallest that any stage says."""
        return self._pipeline.least(number) if self._pipeline else number

    def steps(self, runner: ModelRunner, tell: Tell) -> Runner:
        """On the first stage: what launches steps on all devices of the replica. `tell` passes a message to
        the other ranks of the pod."""
        pipeline = self._pipeline
        if pipeline is None:
            return Leading(runner, tell) if self._ranks > 1 else runner
        pipeline.join(runner)

        def tell_all(order: bytes) -> None:
            pipeline.order(order)
            tell(order)

        # The last stage samples, so ranks of this one hear the tokens with the orders.
        return pipeline.awaiting(Leading(runner, tell_all, tells_tokens=self._ranks > 1))

    def follow(self, runner: ModelRunner, tell: Tell) -> None:
        """On any other stage: compute what the first one orders, until its farewell."""
        pipeline = self._pipeline
        assert pipeline is not None, "a stage that is alone is the first"
        pipeline.join(runner)

        def pass_on(number: int, frame: FrameType | None) -> None:
            del number, frame
            pipeline.leave()

        signal.signal(signal.SIGTERM, pass_on)
        pipeline.follow(runner, tell)

    def close(self) -> None:
        """On the first stage: nothing more will be computed. On the others: the farewell was heard."""
        if self._pipeline:
            self._pipeline.close()


def _end_this_one() -> None:
    """As the kubelet does."""
    os.kill(os.getpid(), signal.SIGTERM)
