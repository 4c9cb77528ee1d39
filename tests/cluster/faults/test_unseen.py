"""Pods that come and go while nobody can look: no watch ever shows them."""

from __future__ import annotations

import pytest
from tests.cluster.api_proxy import Request
from tests.cluster.faults.conftest import Scene

from plimsoll.cluster.reservations import EXPIRY_SECONDS

pytestmark = pytest.mark.cluster


def test_a_pod_that_came_and_went_while_the_watch_was_down_is_made_anew_with_the_next_list(
    scene: Scene,
) -> None:
    scene.serve()
    proxy, core = scene.ground.proxy, scene.models.core
    first = scene.models.pod_uids()
    lists: list[Request] = []

    def reads_pods(request: Request) -> bool:
        return request.method == "GET" and request.path == "/api/v1/pods"

    def broken(request: Request) -> int:
        return 500 if reads_pods(request) else 0

    def expired_once(request: Request) -> int:
        if reads_pods(request):
            lists.append(request)
        return 410 if len(lists) == 1 else 0

    proxy.status = broken
    proxy.cut()
    scene.models.scale("small", 2)
    scene.wait(
        lambda: len(scene.models.pod_uids()) == 2, "the second replica has its pod", scene.operator.tail
    )
    [unseen] = scene.models.pod_uids().keys() - first.keys()
    gone = scene.models.pod_uids()[unseen]
    core.delete_namespaced_pod(unseen, scene.models.name, grace_period_seconds=0)
    scene.wait(lambda: unseen not in scene.models.pod_uids(), "it is gone", scene.models.pod_uids)
    proxy.status = expired_once
    # Whoever knows nothing better waits for EXPIRY_SECONDS.
    scene.ground.wait_for(
        lambda: len(scene.models.pod_uids()) == 2,
        EXPIRY_SECONDS / 4,
        "another one is made",
        scene.operator.tail,
    )
    assert gone not in scene.models.pod_uids().values()
    scene.ready()
    assert first.items() <= scene.models.pod_uids().items()
