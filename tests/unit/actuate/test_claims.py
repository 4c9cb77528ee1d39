"""Claims of devices: the template that a plan's pods share, and what it selects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.actuate.test_pods import DEFAULTS, HUB, OWNER, plan, revision, spec

from plimsoll.actuate.claims import claim_template, selector
from plimsoll.actuate.pods import worker_pod
from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus
from plimsoll.inventory.nodes import pod_view
from plimsoll.inventory.views import Resources

L4 = "gpu.nvidia.com/NVIDIA-L4"
SLICE = "mig.nvidia.com/NVIDIA-A100-SXM4-40GB-MIG-3g.20gb"


def claimed(resource: str = L4, tensor: int = 1) -> PlanStatus:
    product = resource.partition("/")[2]
    changes = {"allocation": "DRA", "resource_name": resource, "product": product, "tensor_parallel": tensor}
    return plan().model_copy(update=changes)


def pod(of: PlanStatus) -> dict[str, Any]:
    requests = Resources(
        cpu_millis=1500, memory_bytes=5 << 30, pods=1, extended={of.resource_name: of.tensor_parallel}
    )
    placement = PlanPlacement(replica=0, stage=0, node="g", gpus=of.tensor_parallel)
    return worker_pod(revision(spec(HUB)), of, placement, 0, requests, DEFAULTS)


def test_the_template_asks_for_the_gpus_of_one_pod() -> None:
    template = claim_template(revision(spec(HUB)), claimed(tensor=4))
    assert (template["apiVersion"], template["kind"]) == ("resource.k8s.io/v1", "ResourceClaimTemplate")
    assert template["metadata"]["name"] == "small-1-abcd"
    assert template["metadata"]["ownerReferences"] == [OWNER.reference()]
    [request] = template["spec"]["spec"]["devices"]["requests"]
    asked = request["exactly"]
    assert (asked["deviceClassName"], asked["allocationMode"], asked["count"]) == (
        "gpu.nvidia.com",
        "ExactCount",
        4,
    )
    assert "constraints" not in template["spec"]["spec"]["devices"]


@pytest.mark.parametrize(
    ("resource", "device_class", "terms"),
    [
        (L4, "gpu.nvidia.com", [".productName.replace(' ', '-') == 'NVIDIA-L4'"]),
        (
            SLICE,
            "mig.nvidia.com",
            [".productName.replace(' ', '-') == 'NVIDIA-A100-SXM4-40GB'", ".profile == '3g.20gb'"],
        ),
    ],
    ids=["whole", "slice"],
)
def test_the_selector_names_what_was_counted(resource: str, device_class: str, terms: list[str]) -> None:
    template = claim_template(revision(spec(HUB)), claimed(resource))
    asked = template["spec"]["spec"]["devices"]["requests"][0]["exactly"]
    assert asked["deviceClassName"] == device_class
    [expression] = [one["cel"]["expression"] for one in asked["selectors"]]
    for term in terms:
        assert term in expression
    assert expression.count("&&") == len(terms)


@pytest.mark.parametrize(("headroom", "memory"), [(0, 1000), (3, 1031), (50, 2000)])
def test_the_least_memory_has_room_for_the_line(headroom: int, memory: int) -> None:
    assert f"quantity('{memory}')" in selector(claimed(), headroom)
    assert memory * (100 - headroom) // 100 >= 1000 > (memory - 1) * (100 - headroom) // 100


def test_the_pod_claims_devices_and_asks_for_no_extended_resource() -> None:
    found = pod(claimed())
    assert found["spec"]["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": "small-1-abcd"}]
    resources = found["spec"]["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "gpus"}]
    assert resources["requests"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert resources["limits"].keys() == {"memory"}


def test_the_pod_counts_as_holding_what_it_will_claim() -> None:
    found = pod(claimed(tensor=2))
    assert json.loads(found["metadata"]["annotations"]["plimsoll.dev/devices"]) == {L4: 2}
    view = pod_view(found)
    assert view is not None
    assert view.requests.extended == {L4: 2}
    assert view.pinned_node == "g"


def test_a_pod_of_a_device_plugin_claims_nothing() -> None:
    of = plan()
    found = pod(of)
    assert "resourceClaims" not in found["spec"]
    assert "claims" not in found["spec"]["containers"][0]["resources"]
    assert found["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
