"""An API server that restarts, is away, is slow, or answers what only a server in trouble does; etcd too."""

from __future__ import annotations

import time

import pytest
from tests.cluster.api_proxy import Request
from tests.cluster.faults.conftest import THOROUGH, Scene, first_of
from tests.cluster.faults.ground import is_write_in

pytestmark = pytest.mark.cluster


AWAY_SECONDS = 60
"""Longer than any request, Lease or back-off of the operator lasts at first."""


def goes_on(scene: Scene, before: dict[str, str]) -> None:
    """What ran runs on, and the operator answers to what is asked of it."""
    scene.models.scale("small", 3)
    scene.wait(
        lambda: scene.models.status("small").get("readyReplicas") == 3,
        "a third replica answers",
        lambda: scene.models.get("small"),
    )
    scene.ready()
    assert before.items() < scene.models.pod_uids().items()


@pytest.mark.parametrize("process", first_of({name: name for name in ("kube-apiserver", "etcd")}))
def test_a_control_plane_that_restarts_costs_no_pod(process: str, scene: Scene) -> None:
    scene.serve(replicas=2)
    before = scene.models.pod_uids()
    operator = scene.operator
    with scene.ground.down(process):
        pass
    goes_on(scene, before)
    assert operator.running, "it was not ended by that"


@THOROUGH
def test_an_api_server_that_is_away_until_the_lease_has_run_out_costs_no_pod(scene: Scene) -> None:
    scene.serve(replicas=2)
    before = scene.models.pod_uids()
    operator = scene.operator
    with scene.ground.down("kube-apiserver"):
        since = time.monotonic()
        scene.wait(
            lambda: operator.metric("plimsoll_leading") == 0, "the operator leads no longer", operator.tail
        )
        scene.wait(lambda: time.monotonic() >= since + AWAY_SECONDS, "the API server was long away")
        lives = lambda: operator.page("/healthz", health=True)[0] == 200  # noqa: E731
        scene.wait(lives, "it says that it lives: waiting is no reason to be restarted")
    goes_on(scene, before)
    assert operator.running, "it was not ended by that"


@THOROUGH
@pytest.mark.parametrize("status", [409, 429, 500])
def test_errors_in_place_of_a_first_answer_delay_and_no_more(status: int, scene: Scene) -> None:
    ours, refused = is_write_in(scene.models.name), set[tuple[str, str]]()

    def once(request: Request) -> int:
        if not ours(request) or (request.method, request.path) in refused:
            return 0
        refused.add((request.method, request.path))
        return status

    scene.ground.proxy.status = once
    scene.serve()
    assert len(refused) >= 5
    goes_on(scene, scene.models.pod_uids())


@THOROUGH
def test_a_slow_api_server_delays_and_no_more(scene: Scene) -> None:
    scene.ground.proxy.delay_seconds = 0.5
    scene.serve()
    goes_on(scene, scene.models.pod_uids())
