"""`make soak`: churn for ten minutes with one operator, whose memory must not grow with what it has seen.

Not collected with the other tests: it takes longer than all of them.
"""

from __future__ import annotations

import os
import time

import pytest
from tests.cluster.faults.churn import Churn
from tests.cluster.faults.conftest import Scene
from tests.cluster.faults.ground import resident_mib

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("PLIMSOLL_SOAK_SECONDS", "600"))
WARM_SHARE = 0.3
"""Of the time: by then everything has happened at least once."""
GROWTH_MIB = 24
"""Allocators keep some of what they once had; a leak of 50 KiB a resource would be more than this."""


def test_the_operators_memory_stays_flat(scene: Scene) -> None:
    operator, churn = scene.operator, Churn(scene, seed=0)
    started = time.monotonic()
    samples: list[tuple[float, int]] = []

    def look() -> None:
        samples.append((time.monotonic() - started, resident_mib(operator)))
        # What is kept for other tests would make this process grow, and with it the machine's load.
        scene.ground.proxy.writes.clear()

    churn.run(SECONDS, kills=False, each=look)
    churn.settle()
    shown = ", ".join(f"{mib} MiB after {seconds:.0f} s" for seconds, mib in samples[:: len(samples) // 10])
    print(f"{churn.made} resources: {shown}; {churn.did}")
    assert operator.running
    warm = max(mib for seconds, mib in samples if seconds < SECONDS * WARM_SHARE)
    assert max(mib for _, mib in samples) - warm <= GROWTH_MIB
