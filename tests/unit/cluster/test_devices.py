"""Devices of DRA in the operator's state: followed where they are served, counted into nodes and pods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.unit.cluster.world import cpu_node
from tests.unit.inventory.test_dra import RESOURCE, claim, device, pod, resource_slice

from plimsoll.cluster.informer import OptionalSource, Reflector
from plimsoll.cluster.kube import RESOURCE_SLICES, Gone, Kube, Page
from plimsoll.cluster.state import ClusterState


class Server:
    """An API server that may come to serve slices."""

    def __init__(self, *slices: dict[str, Any], served: bool) -> None:
        self.slices, self.served, self.lists = list(slices), served, 0

    def serves(self, _kind: object) -> bool:
        return self.served

    def pages(self, _kind: object, **_: Any) -> Iterator[Page]:
        assert self.served
        self.lists += 1
        yield Page(self.slices, "7")

    def watch(self, _kind: object, version: str, **_: Any) -> Iterator[dict[str, Any]]:
        assert version == "7"
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}}


def follow(server: Server) -> tuple[Reflector, ClusterState]:
    state = ClusterState(lambda: None)
    source = OptionalSource(cast("Kube", server), RESOURCE_SLICES)
    return Reflector("slices", source, state.slices, pause=lambda _: None), state


def test_a_kind_that_is_not_served_is_empty_and_holds_nobody_up() -> None:
    server = Server(served=False)
    reflector, state = follow(server)
    reflector.step()
    assert reflector.synced
    assert not state.snapshot().slices
    assert not server.lists


def test_a_kind_that_comes_to_be_served_is_listed() -> None:
    server = Server(resource_slice(device("gpu-0")), served=False)
    reflector, state = follow(server)
    reflector.step()
    server.served = True
    with pytest.raises(Gone):
        reflector.step()
    fresh, state = follow(server)
    fresh.step()
    assert [view.driver for view in state.snapshot().slices.values()] == ["gpu.nvidia.com"]


def state_of(*objects: tuple[str, dict[str, Any]]) -> ClusterState:
    state = ClusterState(lambda: None)
    for view, obj in objects:
        getattr(state, view).apply("ADDED", obj)
    return state


def free(state: ClusterState) -> int:
    view = state.snapshot()
    [node] = view.nodes
    held = sum(entry.view.requests.extended.get(RESOURCE, 0) for entry in view.pods.values() if entry.view)
    return node.allocatable.extended.get(RESOURCE, 0) - held


def test_claims_and_pods_are_counted_once() -> None:
    two = resource_slice(device("gpu-0"), device("gpu-1"))
    ours = pod("x", devices=f'{{"{RESOURCE}": 1}}')
    state = state_of(("nodes", cpu_node("a")), ("slices", two))
    assert free(state) == 2
    state.pods.apply("ADDED", ours)
    assert free(state) == 1
    state.device_claims.apply("ADDED", claim("c", "gpu-1", pod="x"))
    assert free(state) == 1
    state.device_claims.apply("ADDED", claim("of-nobody", "gpu-0"))
    assert free(state) == 0
    state.pods.apply("DELETED", ours)
    state.device_claims.apply("DELETED", claim("c", "gpu-1"))
    state.device_claims.apply("DELETED", claim("of-nobody", "gpu-0"))
    assert free(state) == 2
    state.slices.apply("DELETED", two)
    assert not state.snapshot().nodes[0].gpus


def test_a_claim_that_shows_before_its_pod_is_not_counted_beside_the_promise() -> None:
    early = claim("c", "gpu-0", pod="x")
    early["metadata"]["ownerReferences"] = [{"kind": "Pod", "name": "x", "uid": "uid-x"}]
    state = state_of(
        ("nodes", cpu_node("a")), ("slices", resource_slice(device("gpu-0"))), ("device_claims", early)
    )
    assert free(state) == 1
