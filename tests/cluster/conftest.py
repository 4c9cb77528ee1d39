"""Fake GPU nodes for the tests that need a scheduler but no kubelet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from dev.cluster.nodes import NodePool, expand

L4 = NodePool("l4", "NVIDIA-L4", 1, 1, 23034, "8.9", "16", "64Gi", "350Gi", 58)
H100 = NodePool("h100", "NVIDIA-H100-80GB-HBM3", 1, 8, 81559, "9.0", "192", "2Ti", "25Ti")


@pytest.fixture
def fake_nodes(kube: Any, wait_for: Callable[..., Any]) -> Iterator[Callable[..., list[str]]]:
    """`fake_nodes(pool, ...)`: create the nodes of some pools, wait until they are ready; gone after the
    test.
    """
    from kubernetes import client

    core = client.CoreV1Api(kube)

    def create(*pools: NodePool) -> list[str]:
        names = []
        for body in expand(list(pools)):
            name = body["metadata"]["name"]
            core.create_node(body)
            cleanup.callback(core.delete_node, name)
            names.append(name)

        def schedulable(name: str) -> bool:
            node = core.read_node(name)
            taints = {taint.key for taint in node.spec.taints or []}
            ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or [])
            return ready and "node.kubernetes.io/not-ready" not in taints

        for name in names:
            wait_for(lambda name=name: schedulable(name), 30, f"fake node {name} is ready")
        return names

    with ExitStack() as cleanup:
        yield create
