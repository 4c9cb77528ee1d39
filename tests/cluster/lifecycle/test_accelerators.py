"""GPUs that are not `nvidia.com/gpu`: devices that the real scheduler hands out by claims, and MIG slices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from dev.cluster.description import Cluster
from dev.cluster.nodes import NodePool
from kubernetes import client
from tests.cluster.conftest import L4
from tests.cluster.lifecycle.conftest import Namespace, small
from tests.cluster.lifecycle.operator_process import Operator

pytestmark = [pytest.mark.cluster, pytest.mark.node]

DRIVER = "gpu.nvidia.com"
PRODUCT = "NVIDIA L4"
BARE = replace(L4, name="bare", gpus=0)
"""No device plugin and no labels, as a node that serves its GPUs by DRA."""


@pytest.fixture
def bare_nodes(kube: Any, fake_nodes: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Nodes without `nvidia.com/gpu`, tainted so that no inspect pod lands on them."""

    def create(*pools: NodePool) -> list[str]:
        names = fake_nodes(*pools)
        taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
        for name in names:
            client.CoreV1Api(kube).patch_node(name, {"spec": {"taints": [taint]}})
        return names

    return create


@pytest.fixture
def devices(kube: Any) -> Iterator[Callable[[str, int], None]]:
    """`devices(node, count)`: L4s published as NVIDIA's driver does, and its DeviceClass; gone after the
    test."""
    api = client.ResourceV1Api(kube)
    expression = f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == 'gpu'"
    selectors = {"selectors": [{"cel": {"expression": expression}}]}
    with ExitStack() as cleanup:
        spec = selectors | {"extendedResourceName": "nvidia.com/gpu"}
        api.create_device_class({"metadata": {"name": DRIVER}, "spec": spec})
        cleanup.callback(api.delete_device_class, DRIVER)

        def publish(node: str, count: int) -> None:
            spec = {
                "driver": DRIVER,
                "nodeName": node,
                "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
                "devices": [_device(number) for number in range(count)],
            }
            api.create_resource_slice({"metadata": {"name": f"{node}-gpus"}, "spec": spec})
            cleanup.callback(api.delete_resource_slice, f"{node}-gpus")

        yield publish


@pytest.fixture
def inventory(cluster: Cluster) -> Callable[[str], list[dict[str, Any]]]:
    """`inventory(node)`: what `plimsoll inventory` tells of it."""

    def ask(node: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "plimsoll.cli.main", "inventory", "-o", "json"]
        environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return [entry for entry in json.loads(told.stdout) if entry["node"] == node]

    return ask


def _device(number: int) -> dict[str, Any]:
    return {
        "name": f"gpu-{number}",
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": f"GPU-{number}"},
            "productName": {"string": PRODUCT},
            "cudaComputeCapability": {"version": "8.9.0"},
        },
        "capacity": {"memory": {"value": "23034Mi"}},
    }


def _held(kube: Any, namespace: str) -> list[tuple[str, str]]:
    """Pool and device of every allocation in a namespace."""
    claims = client.ResourceV1Api(kube).list_namespaced_resource_claim(namespace).items
    allocations = [claim.status.allocation for claim in claims if claim.status and claim.status.allocation]
    return sorted((one.pool, one.device) for given in allocations for one in given.devices.results)


def test_devices_are_planned_claimed_and_freed(
    models: Namespace,
    bare_nodes: Callable[..., list[str]],
    devices: Callable[[str, int], None],
    operator: Operator,
    inventory: Callable[[str], list[dict[str, Any]]],
    kube: Any,
    wait_for: Callable[..., Any],
) -> None:
    [node] = bare_nodes(BARE)
    devices(node, 2)
    models.apply("first", small())
    models.wait_ready("first")
    [plan] = models.status("first")["plans"]
    assert (plan["allocation"], plan["resourceName"]) == ("DRA", "gpu.nvidia.com/NVIDIA-L4")
    assert plan["placements"] == [{"replica": 0, "stage": 0, "node": node, "gpus": 1}]
    [pod] = models.pods()
    assert pod.spec.node_name == node
    assert not {"nvidia.com/gpu", plan["resourceName"]} & (pod.spec.containers[0].resources.limits.keys())
    assert _held(kube, models.name) == [(node, "gpu-0")]
    assert [(gpu["product"], gpu["free"], gpu["total"]) for gpu in inventory(node)] == [("NVIDIA-L4", 1, 2)]

    models.apply("second", small(replicas=2))
    models.wait_condition("second", "Planned", "False", "InsufficientGPUs")
    wait_for(lambda: len(_held(kube, models.name)) == 2, 30, "the last device is claimed")

    models.delete("first")
    models.wait_ready("second")
    assert _held(kube, models.name) == [(node, "gpu-0"), (node, "gpu-1")]
    models.delete("second")
    wait_for(lambda: not _held(kube, models.name), 60, "all devices are free")
    wait_for(lambda: [gpu["free"] for gpu in inventory(node)] == [2], 30, "the inventory tells it")
    templates = client.ResourceV1Api(kube).list_namespaced_resource_claim_template
    wait_for(lambda: not templates(models.name).items, 60, "no template is left")


def test_a_new_revision_takes_the_template_of_the_old_one_away(
    models: Namespace,
    bare_nodes: Callable[..., list[str]],
    devices: Callable[[str, int], None],
    operator: Operator,
    kube: Any,
    wait_for: Callable[..., Any],
) -> None:
    [node] = bare_nodes(BARE)
    devices(node, 1)
    models.apply("small", small())
    models.wait_ready("small")
    templates = client.ResourceV1Api(kube).list_namespaced_resource_claim_template
    [before] = [template.metadata.name for template in templates(models.name).items]
    models.patch("small", {"workload": {"maxConcurrentSequences": 2}})

    def renewed() -> bool:
        names = [template.metadata.name for template in templates(models.name).items]
        return len(names) == 1 and before not in names

    wait_for(renewed, 60, "the new revision's template alone is left", lambda: models.get("small"))
    models.wait_ready("small")


CLAIM = {
    "containers": [{"name": "c", "image": "none", "resources": {"claims": [{"name": "gpu"}]}}],
    "resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}],
}
EXTENDED = {"containers": [{"name": "c", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
"""The scheduler makes a claim of it, because the DeviceClass serves that name; the node offers none."""


@pytest.mark.parametrize("asks", [CLAIM, EXTENDED], ids=["claim", "extended-resource"])
def test_a_device_that_a_stranger_holds_is_not_planned(
    asks: dict[str, Any],
    models: Namespace,
    bare_nodes: Callable[..., list[str]],
    devices: Callable[[str, int], None],
    operator: Operator,
    kube: Any,
    wait_for: Callable[..., Any],
) -> None:
    [node] = bare_nodes(BARE)
    devices(node, 1)
    request = {"name": "one", "exactly": {"deviceClassName": DRIVER}}
    claim = {"metadata": {"name": "mine"}, "spec": {"devices": {"requests": [request]}}}
    client.ResourceV1Api(kube).create_namespaced_resource_claim(models.name, claim)
    stranger = {
        "metadata": {"name": "stranger"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            **asks,
        },
    }
    models.core.create_namespaced_pod(models.name, stranger)
    wait_for(lambda: _held(kube, models.name), 30, "the stranger holds the device")
    models.apply("small", small())
    models.wait_condition("small", "Planned", "False", "InsufficientGPUs")
    operator.wait_rounds()
    assert not models.pods()
    models.core.delete_namespaced_pod("stranger", models.name, grace_period_seconds=0)
    models.wait_ready("small")


def test_a_slice_is_asked_for_by_its_own_resource(
    models: Namespace, operator: Operator, bare_nodes: Callable[..., list[str]]
) -> None:
    """Strategy mixed, next to a node with a whole GPU that stays free."""
    cut = NodePool("cut", "NVIDIA-A100-SXM4-40GB", 1, 0, 40960, "8.0", "16", "64Gi", "350Gi", 58)
    resource = "nvidia.com/mig-3g.20gb"
    whole, node = bare_nodes(L4, cut)
    labels = {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
        "nvidia.com/gpu.replicas": "0",
        f"{resource}.product": "NVIDIA-A100-SXM4-40GB-MIG-3g.20gb",
        f"{resource}.memory": "20096",
        f"{resource}.count": "2",
    }
    models.core.patch_node(node, {"metadata": {"labels": labels}})
    amounts = {"status": {"capacity": {resource: "2"}, "allocatable": {resource: "2"}}}
    models.core.patch_node_status(node, amounts)
    models.apply("small", small(placement={"sharing": "MIG"}))
    models.wait_ready("small")
    [pod] = models.pods()
    assert pod.spec.node_name == node != whole
    assert pod.spec.containers[0].resources.limits[resource] == "1"
