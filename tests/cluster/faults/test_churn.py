"""Everything at once, for a while."""

from __future__ import annotations

import os

import pytest
from tests.cluster.faults.churn import Churn
from tests.cluster.faults.conftest import SEEDS, Scene

pytestmark = pytest.mark.cluster

SECONDS = float(os.environ.get("PLIMSOLL_CHURN_SECONDS", "15"))


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_churn_with_faults_what_is_left_is_served(seed: int, scene: Scene) -> None:
    churn = Churn(scene, seed)
    with scene.ground.revived():
        churn.run(SECONDS)
    churn.settle()
    print(f"{churn.made} resources: {churn.did}")
    assert churn.made > 5
