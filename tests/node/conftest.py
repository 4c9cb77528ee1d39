"""What tests on a real kubelet need: the node's name, the project's images, and a pod that runs Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dev.cluster.description import Cluster
from dev.image import ensure_images


@pytest.fixture(scope="session")
def real_node(cluster: Cluster) -> str:
    """The name of the node whose pods really run."""
    assert cluster.node is not None, "this cluster has no real node; start it with --real-node"
    return cluster.node


@pytest.fixture(scope="session")
def operator_image(cluster: Cluster, real_node: str) -> str:
    """The operator's image of the code as it is now, known to the real node."""
    [name] = ensure_images(cluster, ["operator"])
    return name


@pytest.fixture
def python_pod(
    kube: Any, namespace: str, operator_image: str, wait_for: Callable[..., Any]
) -> Callable[..., Any]:
    """`python_pod(name, code, **spec)`: a pod as restricted as workers are, ready when its probe says so."""
    from kubernetes import client

    core = client.CoreV1Api(kube)

    def start(name: str, code: str, *, labels: dict[str, str] | None = None, **extra: Any) -> Any:
        container = {
            "name": "c",
            "image": operator_image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", code],
            "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "1", "memory": "256Mi"}},
            "volumeMounts": extra.pop("volume_mounts", []),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        spec = {"containers": [container], "securityContext": security, **extra}
        core.create_namespaced_pod(
            namespace, {"metadata": {"name": name, "labels": labels or {}}, "spec": spec}
        )

        def ready() -> Any:
            pod = core.read_namespaced_pod(name, namespace)
            found = [c for c in pod.status.conditions or [] if c.type == "Ready" and c.status == "True"]
            return pod if found else None

        return wait_for(ready, 60, f"pod {name} is ready", lambda: core.read_namespaced_pod(name, namespace))

    return start
