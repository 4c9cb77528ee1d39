"""SIGKILL of the operator at any of its writes, chosen by a seed, and again while the next one mends that."""

from __future__ import annotations

import random

import pytest
from tests.cluster.api_proxy import Request
from tests.cluster.faults.conftest import SEEDS, Scene
from tests.cluster.faults.ground import deployment, is_write_in

pytestmark = pytest.mark.cluster

WRITES_OF_A_LIFE = 24
"""About so many follow from creation, a roll-out, scaling and deletion."""
KILLS = 3


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_any_write_of_a_life_the_end_is_the_same(seed: int, scene: Scene) -> None:
    chance = random.Random(seed)
    killed: list[Request] = []
    left = [chance.randrange(WRITES_OF_A_LIFE // KILLS) for _ in range(KILLS)]
    ours = is_write_in(scene.models.name)

    def trip(request: Request) -> bool:
        """Counts down to the next kill; what a dead operator had on its way is lost with it."""
        if not scene.ground.running:
            return ours(request)
        if left and ours(request):
            left[0] -= 1
            if left[0] < 0:
                left.pop(0)
                killed.append(request)
                scene.ground.kill_operator()
                return True
        return False

    scene.ground.proxy.tripwire = trip
    with scene.ground.revived():
        scene.serve(replicas=2)
        before = scene.models.status("small")["currentRevision"]
        scene.models.patch("small", {"workload": {"maxConcurrentSequences": 2}})
        scene.ready()
        scene.models.scale("small", 1)
        scene.ready()
        scene.wait(lambda: len(scene.models.pods()) == 1, "one replica is left", scene.models.pod_uids)
        scene.models.apply("other", deployment())
        scene.ready("other")
    assert killed
    status = scene.models.status("small")
    assert status["currentRevision"] == status["updateRevision"] != before
    names = [pod.metadata.name for pod in scene.models.pods(name="small")]
    assert [name.rsplit("-r", 1)[0] for name in names] == [status["currentRevision"]]
    revisions = scene.models.apps.list_namespaced_controller_revision
    scene.wait(lambda: len(revisions(scene.models.name).items) == 2, "one revision for each deployment")
