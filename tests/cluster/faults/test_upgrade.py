"""A new version of the operator takes over from the old one while many deployments serve."""

from __future__ import annotations

import pytest
from tests.cluster.faults.conftest import THOROUGH, Scene
from tests.cluster.faults.ground import SETTINGS, deployment

pytestmark = pytest.mark.cluster

DEPLOYMENTS = 50
NEXT = {"worker_image": "plimsoll.dev/worker:next", "operator_image": "plimsoll.dev/operator:next"}


def lives(scene: Scene) -> dict[str, tuple[str, int, str]]:
    """UID, restarts and image of every worker pod."""
    return {
        pod.metadata.name: (
            pod.metadata.uid,
            sum(one.restart_count for one in pod.status.container_statuses),
            pod.spec.containers[0].image,
        )
        for pod in scene.models.pods()
    }


@THOROUGH
def test_a_new_version_touches_no_pod_and_new_deployments_run_its_engine(scene: Scene) -> None:
    names = [f"d{number}" for number in range(DEPLOYMENTS)]
    for name in names:
        scene.models.apply(name, deployment())
    for name in names:
        scene.ready(name)
        # A report that did not come at first is asked for again later, and what it says is written then.
        scene.told(name, "Verified", "True")
    scene.quiet()
    before, written = lives(scene), scene.ground.writes()
    revisions = {name: scene.models.status(name)["currentRevision"] for name in names}
    assert len(before) == DEPLOYMENTS
    with scene.ground.another_operator(**NEXT):
        scene.operator.wait_rounds()
        scene.quiet()
        assert lives(scene) == before
        assert {name: scene.models.status(name)["currentRevision"] for name in names} == revisions
        last = [(write.method, write.path) for write in scene.ground.proxy.writes[-5:]]
        assert scene.ground.writes() == written, f"there is nothing to write for it, the last were {last}"
        scene.serve("fresh")
        [fresh] = scene.models.pods(name="fresh")
        assert fresh.spec.containers[0].image == NEXT["worker_image"] != SETTINGS["worker_image"]
        scene.models.patch("d0", {"workload": {"maxConcurrentSequences": 2}})
        scene.ready("d0")
        scene.wait(lambda: len(scene.models.pods(name="d0")) == 1, "the old pod is gone")
        [changed] = scene.models.pods(name="d0")
        assert changed.spec.containers[0].image == NEXT["worker_image"], "a changed spec takes it"
    after = lives(scene)
    assert {name: after[name] for name in before if name in after} == {
        name: life for name, life in before.items() if not name.startswith("d0-")
    }
