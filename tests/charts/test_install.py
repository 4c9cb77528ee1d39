"""The charts on a real API server: every object is taken, rights are as told, CRDs outlive their chart."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from kubernetes import client
from tests.charts.conftest import CHARTS, Run
from tests.conftest import SLACK

pytestmark = pytest.mark.cluster

CRD = "llmdeployments.plimsoll.dev"
SERVER_DRY_RUN = (
    "apply",
    "--server-side",
    "--dry-run=server",
    "--validate=strict",
    "--warnings-as-errors",
    "-f",
    "-",
)


@pytest.fixture
def crds(in_cluster: Run) -> None:
    """The CRD chart, installed; it takes over what `kubectl apply -f crds/` may have left."""
    take_over = ("--take-ownership", "--force-conflicts")
    in_cluster("helm", "upgrade", "--install", "plimsoll-crds", str(CHARTS / "plimsoll-crds"), *take_over)
    in_cluster("kubectl", "wait", "--for=condition=Established", f"crd/{CRD}", f"--timeout={30 * SLACK}s")


def test_every_object_is_taken_without_a_warning(
    render: Callable[..., list[dict[str, Any]]], in_cluster: Run, namespace: str
) -> None:
    objects = render("metrics.service.enabled=true")
    for item in objects:
        if "namespace" in item["metadata"]:
            item["metadata"]["namespace"] = namespace
    done = in_cluster("kubectl", *SERVER_DRY_RUN, stdin=yaml.safe_dump_all(objects))
    assert len(done.stdout.splitlines()) == len(objects)


def test_the_operators_pod_meets_the_restricted_standard(
    render: Callable[..., list[dict[str, Any]]],
    kube: client.ApiClient,
    namespace: str,
    wait_for: Callable[..., Any],
) -> None:
    core = client.CoreV1Api(kube)
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.patch_namespace(namespace, {"metadata": {"labels": enforce}})
    [deployment] = [item for item in render() if item["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"] | {"serviceAccountName": "default"}
    body = {"metadata": {"name": "operator"}, "spec": spec}
    loose = spec["securityContext"].keys() - {"runAsNonRoot"}
    lax = body | {"spec": spec | {"securityContext": {key: spec["securityContext"][key] for key in loose}}}

    def refused() -> bool:
        """The standard is kept to as soon as the API server has seen the label."""
        try:
            core.create_namespaced_pod(namespace, lax, dry_run="All")
        except client.ApiException as error:
            return "violates PodSecurity" in str(error.body)
        return False

    wait_for(refused, 20, "a pod that may run as root is refused")
    assert core.create_namespaced_pod(namespace, body, dry_run="All").metadata.name == "operator"


ALLOWED = {
    "list nodes",
    "create pods",
    "delete pods",
    "patch pods",  # to remove the gates of replicas of several pods
    "patch services",
    "patch llmdeployments/status",
    "create events.events.k8s.io",
}
DENIED = {
    "get secrets", "list secrets", "get configmaps", "create pods/exec", "create pods/binding",
    "patch nodes", "delete nodes", "patch llmdeployments", "delete llmdeployments", "create clusterroles",
}  # fmt: skip


def test_rights_of_the_operator_and_of_users(
    crds: None, in_cluster: Run, kube: client.ApiClient, namespace: str, wait_for: Callable[..., Any]
) -> None:
    in_cluster("helm", "install", namespace, str(CHARTS / "plimsoll"), "-n", namespace)
    try:
        names = in_cluster("kubectl", "get", "serviceaccount", "-n", namespace, "-o", "name").stdout.split()
        [account] = [name.split("/")[1] for name in names if not name.endswith("/default")]
        operator = f"system:serviceaccount:{namespace}:{account}"

        def granted(asked: set[str]) -> set[str]:
            return {what for what in asked if may(kube, operator, namespace, *what.split())}

        # The API server's authorizer learns of roles and bindings a moment after they are there.
        wait_for(
            lambda: granted(ALLOWED) == ALLOWED, 20, "its rights are known", lambda: sorted(granted(ALLOWED))
        )
        assert granted(DENIED) == set()

        for role in ("view", "edit"):
            in_cluster(
                "kubectl",
                "create",
                "rolebinding",
                role,
                f"--clusterrole={role}",
                f"--user={role}r",
                "-n",
                namespace,
            )
        wait_for(lambda: may(kube, "viewr", namespace, "get", "llmdeployments"), 20, "view may read")
        wait_for(lambda: may(kube, "editr", namespace, "create", "llmdeployments"), 20, "edit may write")
        assert not may(kube, "viewr", namespace, "create", "llmdeployments")
        assert not may(kube, "editr", namespace, "patch", "llmdeployments/status")
    finally:
        in_cluster("helm", "uninstall", namespace, "-n", namespace)


def may(kube: client.ApiClient, user: str, namespace: str, verb: str, what: str) -> bool:
    """Whether RBAC lets `user` do it: `what` is resource[.group][/subresource]."""
    resource, _, subresource = what.partition("/")
    resource, _, group = resource.partition(".")
    group = group or ("plimsoll.dev" if resource == "llmdeployments" else "")
    attributes = {
        "verb": verb,
        "resource": resource,
        "subresource": subresource,
        "group": group,
        "namespace": namespace,
    }
    review = client.AuthorizationV1Api(kube).create_subject_access_review(
        {"spec": {"user": user, "groups": ["system:authenticated"], "resourceAttributes": attributes}}
    )
    return bool(review.status.allowed)


def test_crds_outlive_their_chart(crds: None, in_cluster: Run) -> None:
    before = json.loads(in_cluster("kubectl", "get", "crd", CRD, "-o", "json").stdout)
    in_cluster("helm", "uninstall", "plimsoll-crds")
    after = json.loads(in_cluster("kubectl", "get", "crd", CRD, "-o", "json").stdout)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "deletionTimestamp" not in after["metadata"]
