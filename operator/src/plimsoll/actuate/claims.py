"""Claims of devices: what a worker pod asks for where GPUs are handed out by dynamic resource allocation.

A template is named after revision and plan, so all pods of a plan share it and a repeated create meets
AlreadyExists. Kubernetes makes a claim of each pod's own from it, and takes the claim away with the pod. The
selector names what planning counted: the product, and memory for the line. Devices need not share a PCIe root
or a NUMA node: planning promised GPUs of one node and no more.
"""

from __future__ import annotations

import json
from typing import Any

from plimsoll.actuate.ownership import WORKER, labels, metadata
from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.inventory.dra import NVIDIA_DRIVER
from plimsoll.inventory.gpu_class import Allocation
from plimsoll.inventory.mig import IN_PRODUCT
from plimsoll.inventory.nodes import DEVICES

REQUEST = "gpus"


def is_claimed(plan: PlanStatus) -> bool:
    """Whether the plan's GPUs come by claims."""
    return plan.allocation == Allocation.DRA


def template_name(plan: PlanStatus) -> str:
    return f"{plan.revision}-{plan.id}"


def claim_template(revision: Revision, plan: PlanStatus) -> dict[str, Any]:
    """The ResourceClaimTemplate that the pods of a plan are made with."""
    device_class = plan.resource_name.partition("/")[0]
    request = {
        "name": REQUEST,
        "exactly": {
            "deviceClassName": device_class,
            "allocationMode": "ExactCount",
            "count": plan.tensor_parallel,
            "selectors": [
                {"cel": {"expression": selector(plan, revision.spec.placement.memory_headroom_percent)}}
            ],
        },
    }
    own_labels = labels(revision.owner, WORKER, revision=revision.name)
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata(revision.owner, template_name(plan), own_labels),
        "spec": {"metadata": {"labels": own_labels}, "spec": {"devices": {"requests": [request]}}},
    }


def selector(plan: PlanStatus, headroom_percent: int) -> str:
    """CEL over what NVIDIA's driver publishes. Drivers write products with blanks, labels and plans without;
    the least memory is what the highest line is drawn in."""
    product, _, profile = plan.product.partition(IN_PRODUCT)
    line = max(stage.line for stage in plan.memory)
    memory = -(-line * 100 // (100 - headroom_percent))
    attributes, capacity = f"device.attributes['{NVIDIA_DRIVER}']", f"device.capacity['{NVIDIA_DRIVER}']"
    terms = [
        f"{attributes}.productName.replace(' ', '-') == '{product}'",
        f"{capacity}.memory.compareTo(quantity('{memory}')) >= 0",
    ]
    if profile:
        terms.append(f"{attributes}.profile == '{profile}'")
    return " && ".join(terms)


def annotation(plan: PlanStatus) -> dict[str, str]:
    """What the pod will hold, for whoever counts before the claim says so."""
    return {DEVICES: json.dumps({plan.resource_name: plan.tensor_parallel})}


def pod_claims(plan: PlanStatus) -> list[dict[str, str]]:
    """`spec.resourceClaims` of a worker pod."""
    return [{"name": REQUEST, "resourceClaimTemplateName": template_name(plan)}]
