"""Services of a deployment: one for clients, and where a replica has several pods a headless one, by which
its workers find each other."""

from __future__ import annotations

from typing import Any

from plimsoll.actuate.launches import workers_subdomain
from plimsoll.actuate.ownership import DEPLOYMENT, NAME, WORKER, Owner, labels, metadata, worker_selector
from plimsoll.api.v1alpha1 import LLMDeploymentSpec
from plimsoll_worker.launch import STAGE_PORT

HTTP = "http"
STAGES = "stages"


def service(owner: Owner, spec: LLMDeploymentSpec) -> dict[str, Any]:
    """`<name>`: ready pods of stage 0, at the port the spec names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, owner.name, labels(owner, WORKER)),
        "spec": {
            "type": "ClusterIP",
            "selector": worker_selector(owner),
            "ports": [{"name": HTTP, "port": spec.service.port, "protocol": "TCP", "targetPort": HTTP}],
        },
    }


def headless_service(owner: Owner) -> dict[str, Any]:
    """`<name>-workers`: addresses of all workers, also of those that are not ready: they meet before they
    serve."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, workers_subdomain(owner), labels(owner, WORKER)),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {NAME: WORKER, DEPLOYMENT: owner.name},
            "ports": [{"name": STAGES, "port": STAGE_PORT, "protocol": "TCP", "targetPort": STAGES}],
        },
    }


def url(owner: Owner, spec: LLMDeploymentSpec) -> str:
    """Address of the OpenAI API inside the cluster."""
    return f"http://{owner.name}.{owner.namespace}.svc:{spec.service.port}/v1"
