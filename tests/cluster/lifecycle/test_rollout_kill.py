"""SIGKILL between the writes of a roll-out: it ends the same, and no GPU is promised twice on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dev.cluster.description import Cluster
from dev.cluster.nodes import NodePool
from tests.cluster.api_proxy import ApiProxy, Request
from tests.cluster.lifecycle.conftest import Namespace, small
from tests.cluster.lifecycle.operator_process import Operator
from tests.cluster.lifecycle.test_path import TWO_L4
from tests.cluster.lifecycle.test_rollouts import CHANGE, THREE_L4, Answering, rolled_out
from tests.cluster.thorough import first_of

pytestmark = [pytest.mark.cluster, pytest.mark.node]


def _tells_both_plans(request: Request) -> bool:
    if request.method != "PUT" or not request.path.endswith("/status"):
        return False
    return len(json.loads(request.body)["status"].get("plans") or ()) == 2


MOMENTS: dict[str, Callable[[Request], bool]] = {
    "before the new pod": lambda request: request.method == "POST" and request.path.endswith("/pods"),
    "before the course is told": _tells_both_plans,
    "before an old pod goes": lambda request: request.method == "DELETE" and "/pods/" in request.path,
    "before the old revision goes": lambda request: (
        request.method == "DELETE" and "/controllerrevisions/" in request.path
    ),
}


@pytest.mark.parametrize(
    ("pool", "fewest"), [(THREE_L4, 2), (TWO_L4, 1)], ids=["with room for one more", "without room"]
)
@pytest.mark.parametrize("moment", first_of(MOMENTS))
def test_killed_at_any_write_a_roll_out_ends_the_same(
    moment: Callable[[Request], bool],
    pool: NodePool,
    fewest: int,
    cluster: Cluster,
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_operator: Callable[..., Operator],
    wait_for: Callable[..., Any],
    tmp_path: Path,
    kube: Any,
) -> None:
    fake_nodes(pool)
    with ApiProxy(cluster.kubeconfig, tmp_path) as proxy, Answering(kube, models.name) as watch:
        victim = start_operator(proxy.kubeconfig)
        models.apply("small", small(replicas=2, rollout={"drainSeconds": 0}))
        models.wait_ready("small")
        wait_for(lambda: len(watch.answering) == 2, 30, "the watch sees two replicas answer")
        before = models.status("small")["currentRevision"]
        killed: list[Request] = []

        def trip(request: Request) -> bool:
            if not killed and models.name in request.path and moment(request):
                killed.append(request)
                victim.kill()
            return bool(killed)

        watch.begin()
        proxy.tripwire = trip
        models.patch("small", CHANGE)
        wait_for(lambda: killed, 90, "the operator makes the write that it is killed at", victim.tail)
        start_operator()
        wait_for(lambda: rolled_out(models, 2, before), 120, "rolled out", lambda: models.get("small"))
        models.wait_ready("small")
        wait_for(
            lambda: watch.answering == set(models.pod_uids().values()), 30, "the watch has seen all of it"
        )
        assert watch.fewest >= fewest
        assert watch.violations == []
