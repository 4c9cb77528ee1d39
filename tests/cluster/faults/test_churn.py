"""Everything at once, for a while."""

from __future__ import annotations

import os

import pytest
from tests.cluster.faults.churn import Churn
from tests.cluster.faults.conftest import SEEDS, THOROUGH, Scene

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

SHORT, LONG = (15.0, 5), (float(os.environ.get("PLIMSOLL_CHURN_SECONDS", "60")), 200)
"""Seconds, and resources that are made at least: what a seed meets comes early, what wears out comes late."""


@pytest.mark.parametrize(
    ("seed", "seconds", "resources"),
    [
        *(pytest.param(seed, *SHORT, id=f"{seed}") for seed in SEEDS),
        pytest.param(0, *LONG, id="200 resources", marks=THOROUGH),
    ],
)
def test_after_a_churn_with_faults_what_is_left_is_served(
    seed: int, seconds: float, resources: int, scene: Scene
) -> None:
    churn = Churn(scene, seed)
    with scene.ground.revived():
        churn.run(seconds, resources=resources)
    churn.settle()
    print(f"{churn.made} resources, {churn.kills} kills: {churn.did}")
