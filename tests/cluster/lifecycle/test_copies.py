"""Two copies of the operator: one writes, whatever happens to either of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dev.cluster.description import Cluster
from kubernetes import client
from tests.cluster.api_proxy import ApiProxy, Request
from tests.cluster.conftest import H100
from tests.cluster.lifecycle.conftest import Namespace, small
from tests.cluster.lifecycle.operator_process import Operator
from tests.cluster.lifecycle.promises import PromiseWatch
from tests.conftest import SLACK

from plimsoll.cluster.leader import LEASE_SECONDS, NAME, RETRY_SECONDS

pytestmark = [pytest.mark.cluster, pytest.mark.node]

WRITES = "plimsoll_api_writes_total"
TAKEOVER_SECONDS = 20.0
"""On a machine with nothing else to do; `wait_for` gives a busy one more."""


def writes(operator: Operator) -> float:
    """Without those to the Lease."""
    return operator.metric(WRITES) - operator.metric(f'{WRITES}{{kind="leases"')


def leads(operator: Operator) -> bool:
    return operator.metric("plimsoll_leading") == 1


def lease(kube: Any) -> Any:
    """Its spec: who leads, since when, and when that was last renewed."""
    return client.CoordinationV1Api(kube).read_namespaced_lease(NAME, "default").spec


@pytest.fixture
def start_copy(start_operator: Callable[..., Operator], settings: dict[str, str]) -> Callable[..., Operator]:
    def start(identity: str, kubeconfig: Path | None = None) -> Operator:
        settings["identity"] = identity
        return start_operator(kubeconfig)

    return start


def test_a_killed_leader_is_replaced_within_twenty_seconds_and_no_pod_notices(
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_copy: Callable[..., Operator],
    wait_for: Callable[..., Any],
    kube: Any,
) -> None:
    fake_nodes(H100)
    with PromiseWatch(kube) as promises:
        leader = start_copy("a")
        wait_for(lambda: leads(leader), 30, "the first copy leads", leader.tail)
        standby = start_copy("b")
        models.apply("first", small(replicas=2))
        models.wait_ready("first")
        assert writes(standby) == 0
        before = models.pod_uids()
        leader.kill()
        renewed = lease(kube).renew_time
        models.apply("second", small())
        wait_for(lambda: leads(standby), TAKEOVER_SECONDS, "the other copy leads", standby.tail)
        took = (lease(kube).acquire_time - renewed).total_seconds()
        assert took < TAKEOVER_SECONDS * SLACK
        assert LEASE_SECONDS + RETRY_SECONDS < TAKEOVER_SECONDS, "what it takes where each copy gets its turn"
        models.wait_ready("second")
        assert standby.metric("plimsoll_takeovers_total") == 1
        assert before.items() <= models.pod_uids().items()
        assert promises.seen
        assert promises.violations == []


def test_a_leader_that_hung_between_plan_and_pod_writes_nothing_when_it_goes_on(
    cluster: Cluster,
    models: Namespace,
    fake_nodes: Callable[..., list[str]],
    start_copy: Callable[..., Operator],
    wait_for: Callable[..., Any],
    tmp_path: Path,
    kube: Any,
) -> None:
    fake_nodes(H100)
    with ApiProxy(cluster.kubeconfig, tmp_path) as proxy, PromiseWatch(kube) as promises:
        leader = start_copy("a", proxy.kubeconfig)
        wait_for(lambda: leads(leader), 30, "the first copy leads", leader.tail)
        standby = start_copy("b")
        hung: list[Request] = []

        def hang(request: Request) -> bool:
            creates = request.method == "POST" and b"plimsoll-worker" in request.body
            if not hung and creates and models.name in request.path:
                hung.append(request)
                leader.suspend()
                return True
            return False

        proxy.tripwire = hang
        models.apply("first", small(replicas=2))
        wait_for(lambda: hung, 60, "the leader hangs at a pod", standby.tail)
        wait_for(lambda: leads(standby), TAKEOVER_SECONDS, "the other copy leads", standby.tail)
        models.wait_ready("first")
        sent = len(proxy.writes)
        leader.resume()
        wait_for(lambda: not leads(leader), 30, "the first copy notices", leader.tail)
        models.apply("second", small())
        models.wait_ready("second")
        wait_for(lambda: leads(standby), 30, "the other copy leads still", standby.tail)
        # A renewal that it had begun may go out, and is refused: the Lease has another version by now.
        written = [(one.method, one.path) for one in proxy.writes[sent:] if "/leases/" not in one.path]
        assert written == [], "it noticed before it wrote"
        assert len(models.pods()) == 3
        assert promises.seen
        assert promises.violations == []


def test_a_leader_that_ends_gives_the_lease_back(
    models: Namespace, start_copy: Callable[..., Operator], wait_for: Callable[..., Any], kube: Any
) -> None:
    leader = start_copy("a")
    wait_for(lambda: leads(leader), 30, "the first copy leads", leader.tail)
    standby = start_copy("b")
    assert leader.stop() == 0
    assert lease(kube).holder_identity != "a"
    wait_for(lambda: leads(standby), TAKEOVER_SECONDS, "the other copy leads", standby.tail)
