"""A node that is not ready and not given up yet: nothing moves, and a reader learns why and until when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.cluster.world import World, gpu_node

from plimsoll.cluster.own_pods import stamp

NOT_READY, UNREACHABLE = (f"node.kubernetes.io/{key}" for key in ("not-ready", "unreachable"))


def tolerates(key: str, seconds: int | None) -> dict[str, Any]:
    told = {"key": key, "operator": "Exists", "effect": "NoExecute"}
    return told if seconds is None else told | {"tolerationSeconds": seconds}


def served(replicas: int = 1) -> World:
    world = World(gpu_node("g1", 1), gpu_node("g2", 1))
    world.serve("small", replicas=replicas)
    for pod in world.worker_pods():
        pod["spec"]["tolerations"] += [tolerates(NOT_READY, 300), tolerates(UNREACHABLE, 300)]
    world.settle()
    return world


def lose(world: World, *, marked: bool) -> tuple[dict[str, Any], str]:
    """The node of a pod falls silent; `marked`: Kubernetes counts its pods as not ready by now. Pod and
    node."""
    pod = world.worker_pods()[0]
    node = pod["spec"]["nodeName"]
    world.silence(node)
    if marked:
        pod["status"]["conditions"][0] |= {"status": "False", "lastTransitionTime": world.stamp()}
    world.settle()
    return pod, node


@pytest.mark.parametrize("marked", [False, True])
def test_a_silent_node_is_named_with_the_time_at_which_its_pod_is_given_up(marked: bool) -> None:
    world = served()
    before = copy.deepcopy(world.pods)
    pod, node = lose(world, marked=marked)
    due = stamp(world.now.replace(minute=world.now.minute + 5))
    degraded = world.condition("small", "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NodeNotReady")
    for said in (
        pod["metadata"]["name"],
        node,
        "Kubelet stopped",
        f"removes the pod at {due}",
        "another node",
    ):
        assert said in degraded["message"]
    ready = world.condition("small", "Ready")
    assert (ready["status"], ready["reason"]) == (("False", "NodeNotReady") if marked else ("True", "Ready"))
    assert world.pods.keys() == before.keys(), "the operator waits with Kubernetes"
    assert [event.reason for event in world.events].count("NodeNotReady") == 1


def test_a_node_that_comes_back_is_forgotten() -> None:
    world = served()
    pod, node = lose(world, marked=True)
    world.nodes[node]["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    pod["status"]["conditions"][0]["status"] = "True"
    world.settle()
    assert world.condition("small", "Degraded")["status"] == "False"
    assert world.condition("small", "Ready")["status"] == "True"


def test_what_crashed_on_a_node_before_it_fell_silent_is_not_told_in_its_place() -> None:
    world = served()
    world.crash(world.worker_pods()[0])
    lose(world, marked=True)
    assert world.condition("small", "Ready")["reason"] == "NodeNotReady"


def test_one_silent_node_of_two_leaves_the_deployment_available_and_degraded() -> None:
    world = served(replicas=2)
    lose(world, marked=True)
    assert world.condition("small", "Available")["status"] == "True"
    assert world.condition("small", "Degraded")["reason"] == "NodeNotReady"
    assert world.condition("small", "Progressing")["reason"] == "NodeNotReady"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "tolerates that without end"), (30, "at 2026-11-23T04:00:30Z"), (0, "at 2026-11-23T04:00:00Z")],
)
def test_the_pods_own_patience_counts(seconds: int | None, said: str) -> None:
    world = served()
    [pod] = world.worker_pods()
    pod["spec"]["tolerations"] = [tolerates(NOT_READY, seconds), tolerates(UNREACHABLE, seconds)]
    lose(world, marked=True)
    assert said in world.condition("small", "Ready")["message"]


def test_given_up_by_kubernetes_the_replica_goes_elsewhere_and_nothing_is_told_any_more() -> None:
    world = served()
    pod, node = lose(world, marked=True)
    world.terminate(pod)
    world.settle()
    world.run_pods()
    world.settle()
    [fresh] = [other for other in world.worker_pods() if other is not pod]
    assert fresh["spec"]["nodeName"] != node
    assert world.condition("small", "Ready")["status"] == "True"
    assert world.condition("small", "Degraded")["status"] == "False"
