"""Nodes that fall silent, come back, are lost for good, one and many; and evictions that do not stop."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from kubernetes import client
from tests.cluster.faults.conftest import SEEDS, THOROUGH, Scene
from tests.cluster.faults.ground import GPU_NODES, L4, deployment
from tests.cluster.lifecycle.promises import GPU

pytestmark = pytest.mark.cluster

NOT_READY = "plimsoll.dev/fake-not-ready"
OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "value": "lost", "effect": "NoExecute"}


@contextmanager
def silent(scene: Scene, nodes: Iterable[str], *, lost: bool) -> Iterator[None]:
    """The nodes stop being ready; `lost`: an administrator says that they will not come back. After the block
    they are as before."""
    core, names = scene.models.core, list(nodes)
    taints = {name: core.read_node(name).spec.taints or [] for name in names}
    for name in names:
        core.patch_node(name, {"metadata": {"annotations": {NOT_READY: ""}}})
        if lost:
            core.patch_node(name, {"spec": {"taints": [*map(_plain, taints[name]), OUT_OF_SERVICE]}})
    try:
        yield
    finally:
        for name in names:
            kept = [_plain(taint) for taint in taints[name]]
            core.patch_node(name, {"metadata": {"annotations": {NOT_READY: None}}, "spec": {"taints": kept}})
        scene.wait(lambda: all(_is_ready(scene, name) for name in names), "the nodes are back")


@contextmanager
def gpus(scene: Scene, node: str, count: int) -> Iterator[None]:
    """The node's device plugin finds so many; after the block all of them."""
    core = scene.models.core
    before = core.read_node(node).status.allocatable[GPU]

    def set_to(amount: str) -> None:
        amounts = {"capacity": {GPU: amount}, "allocatable": {GPU: amount}}
        core.patch_node_status(node, {"status": amounts})

    set_to(str(count))
    try:
        yield
    finally:
        set_to(before)


def _plain(taint: client.V1Taint) -> dict[str, str]:
    return {"key": taint.key, "value": taint.value, "effect": taint.effect}


def _is_ready(scene: Scene, name: str) -> bool:
    node = scene.models.core.read_node(name)
    keys = {taint.key for taint in node.spec.taints or ()}
    ready = any(one.type == "Ready" and one.status == "True" for one in node.status.conditions)
    return ready and not any(key.startswith("node.kubernetes.io/") for key in keys)


def nodes_of(scene: Scene, name: str = "") -> set[str]:
    return {pod.spec.node_name for pod in scene.models.pods(name=name) if pod.spec.node_name}


def _answering(scene: Scene) -> list[str]:
    return [
        pod.metadata.name
        for pod in scene.models.pods()
        if any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
    ]


def evict(scene: Scene, pod: str) -> int:
    """The API server's answer: 201 granted, 429 the budget does not allow it, 404 or 409 it is another
    pod by now."""
    try:
        scene.models.core.create_namespaced_pod_eviction(pod, scene.models.name, {"metadata": {"name": pod}})
    except client.ApiException as error:
        if error.status not in (404, 409, 429):
            raise
        return int(error.status)
    return 201


@THOROUGH
def test_a_node_that_comes_back_finds_its_pod_where_it_was(scene: Scene) -> None:
    scene.serve()
    before = scene.models.pod_uids()
    [node] = nodes_of(scene)
    with silent(scene, [node], lost=False):
        told = scene.told("small", "Degraded", "True", "NodeNotReady")["message"]
        assert node in told
        assert "the annotation plimsoll.dev/fake-not-ready is set" in told
        assert "Kubernetes removes the pod at" in told
        scene.operator.wait_rounds()
        assert scene.models.pod_uids() == before
    scene.ready()
    scene.told("small", "Degraded", "False")
    assert scene.models.pod_uids() == before


def test_a_node_that_is_lost_gives_its_replica_to_another(scene: Scene) -> None:
    scene.serve(replicas=2)
    lost = min(nodes_of(scene))
    survivors = {
        uid
        for name, uid in scene.models.pod_uids().items()
        if scene.models.core.read_namespaced_pod(name, scene.models.name).spec.node_name != lost
    }
    with silent(scene, [lost], lost=True):
        scene.wait(
            lambda: lost not in nodes_of(scene) and len(nodes_of(scene)) == 2,
            "the replica is on another node",
            lambda: scene.models.get("small"),
        )
        scene.ready()
        assert survivors < set(scene.models.pod_uids().values())
        assert all(one["restarts"] == 0 for one in scene.models.status("small")["replicaStatuses"])


def test_gpus_that_disappear_leave_alone_what_runs_and_nothing_new_goes_there(scene: Scene) -> None:
    """The node has eight."""
    there = {"placement": {"accelerators": {"products": ["NVIDIA-H100-80GB-HBM3"]}}}
    scene.serve(replicas=2, **there)
    before = scene.models.pod_uids()
    [node] = nodes_of(scene)
    offered = lambda: scene.operator.metric('plimsoll_gpus_total{product="NVIDIA-H100')  # noqa: E731
    all_of_them = offered()
    with gpus(scene, node, 1):
        scene.wait(lambda: offered() < all_of_them, "the operator has seen it", offered)
        scene.models.apply("late", deployment(**there))
        told = scene.told("late", "Planned", "False", "NoMatchingNodes")["message"]
        assert f"{node}: label nvidia.com/gpu.count=8" in told
        scene.quiet()
        assert scene.models.pod_uids() == before
        scene.ready()
    scene.ready("late")
    assert before.items() <= scene.models.pod_uids().items()


@THOROUGH
@pytest.mark.parametrize("seed", SEEDS)
def test_a_third_of_all_nodes_lost_at_once_is_placed_anew_and_only_that(seed: int, scene: Scene) -> None:
    names = [f"d{number}" for number in range(8)]
    for name in names:
        scene.models.apply(name, deployment(replicas=3))
    for name in names:
        scene.ready(name)
    chance, ours = random.Random(seed), sorted(nodes_of(scene))
    others = {f"{L4.name}-{number}" for number in range(GPU_NODES)}
    others -= {*ours, *scene.ground.bystander_nodes()}
    lost = {*chance.sample(ours, 8), *chance.sample(sorted(others), GPU_NODES * 3 // 10 - 8)}
    untouched = {pod.metadata.uid for pod in scene.models.pods() if pod.spec.node_name not in lost}
    with silent(scene, lost, lost=True):
        scene.wait(
            lambda: not nodes_of(scene) & lost and len(nodes_of(scene)) == 24,
            "all replicas have live nodes",
            lambda: [scene.models.get(name) for name in names],
        )
        for name in names:
            scene.ready(name)
        assert untouched < set(scene.models.pod_uids().values())
    scene.quiet()


@THOROUGH
def test_an_eviction_storm_takes_one_replica_at_a_time_and_costs_no_restart(scene: Scene) -> None:
    scene.serve(replicas=3)
    policy = client.PolicyV1Api(scene.ground.kube)

    def guarded() -> bool:
        budget = policy.read_namespaced_pod_disruption_budget("small", scene.models.name)
        return bool(budget.status.disruptions_allowed == 1)

    scene.wait(guarded, "the budget allows one eviction")
    granted, refused = 0, 0

    def storm() -> bool:
        """Everybody is evicted, again and again."""
        nonlocal granted, refused
        for pod in scene.models.pods():
            answer = evict(scene, pod.metadata.name)
            granted += answer == 201 and pod.metadata.deletion_timestamp is None
            refused += answer == 429
        return granted >= 6

    scene.wait(storm, "six pods were evicted", lambda: scene.models.get("small"))
    scene.wait(lambda: len(_answering(scene)) == 3 == len(scene.models.pods()), "three pods answer")
    scene.ready()
    assert refused
    assert all(one["restarts"] == 0 for one in scene.models.status("small")["replicaStatuses"])
