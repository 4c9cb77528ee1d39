"""An operator, a hub and a way to look at one namespace, all against the real API server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from dev.cluster.description import Cluster
from dev.hub.server import HubServer, serve
from dev.hub.well_known import well_known
from dev.image import ensure_images
from kubernetes import client
from tests.cluster.lifecycle.operator_process import REPOSITORY, Operator
from tests.cluster.telling import tells_what_follows
from tests.conftest import _wait_for

from plimsoll.api.v1alpha1 import API_VERSION, GROUP, KIND, PLURAL, VERSION
from plimsoll.api.v1alpha1.profile import PROFILE_PLURAL

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WIDE_MODEL = "meta-llama/Llama-3.1-405B-Instruct"


@pytest.fixture(scope="session")
def installed(kube: Any) -> None:
    """The CRDs, as they are in crds/, and served: the API server says 404 until it has read them."""
    crds = client.ApiextensionsV1Api(kube)
    for path in sorted((REPOSITORY / "crds").glob("*.yaml")):
        body = yaml.safe_load(path.read_text())
        crds.patch_custom_resource_definition(
            body["metadata"]["name"],
            body,
            field_manager="tests",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
    _wait_for(lambda: serves_our_kinds(kube), 30, "the kinds of our CRDs are served")


def serves_our_kinds(kube: Any) -> bool:
    """Whether the API server answers for what the CRDs describe."""
    custom = client.CustomObjectsApi(kube)
    with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
        for plural in (PLURAL, PROFILE_PLURAL):
            custom.list_cluster_custom_object(GROUP, VERSION, plural, _request_timeout=5)
        return True
    return False


@pytest.fixture(scope="session")
def operator_image(cluster: Cluster) -> str:
    """Inspect pods really run: the operator's image of the code as it is now."""
    return ensure_images(cluster, ["operator"])[0]


@pytest.fixture(scope="session")
def hub(cluster: Cluster) -> Iterator[HubServer]:
    """Header-only models, served where pods of the real node reach them."""
    with serve([well_known(MODEL), well_known(WIDE_MODEL)], host=cluster.host_address) as server:
        yield server


@pytest.fixture
def settings(hub: HubServer, operator_image: str) -> dict[str, str]:
    """A test may change them before it starts an operator."""
    return {
        "hf_endpoint": hub.url,
        "operator_image": operator_image,
        "replan_seconds": "2",
    }


@pytest.fixture
def start_operator(
    cluster: Cluster, installed: None, settings: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., Operator]]:
    """`start_operator(kubeconfig=None)`: an operator that has seen the whole cluster; ended after the
    test."""
    started: list[Operator] = []

    def start(kubeconfig: Path | None = None) -> Operator:
        log = tmp_path / f"operator-{len(started)}.log"
        process = Operator(kubeconfig or cluster.kubeconfig, log, **settings)
        started.append(process)
        return process.wait_ready()

    yield start
    for process in started:
        process.kill()
        print(f"--- {process.log.name}\n{process.tail()}")


@pytest.fixture
def operator(start_operator: Callable[..., Operator]) -> Operator:
    return start_operator()


class Namespace:
    """What a test does to a namespace and sees in it."""

    def __init__(self, kube: Any, name: str, wait_for: Callable[..., Any]) -> None:
        self.name = name
        self.core = client.CoreV1Api(kube)
        self.apps = client.AppsV1Api(kube)
        self._custom = client.CustomObjectsApi(kube)
        self._wait_for = wait_for

    def apply(self, name: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
        self._custom.create_namespaced_custom_object(
            GROUP, VERSION, self.name, PLURAL, body, field_validation="Strict"
        )

    def patch(self, name: str, spec: dict[str, Any]) -> None:
        self._custom.patch_namespaced_custom_object(
            GROUP,
            VERSION,
            self.name,
            PLURAL,
            name,
            {"spec": spec},
            _content_type="application/merge-patch+json",
        )

    def annotate(self, name: str, annotations: dict[str, str]) -> None:
        self._custom.patch_namespaced_custom_object(
            GROUP,
            VERSION,
            self.name,
            PLURAL,
            name,
            {"metadata": {"annotations": annotations}},
            _content_type="application/merge-patch+json",
        )

    def scale(self, name: str, replicas: int) -> None:
        self._custom.patch_namespaced_custom_object_scale(
            GROUP, VERSION, self.name, PLURAL, name, {"spec": {"replicas": replicas}}
        )

    def delete(self, name: str) -> None:
        self._custom.delete_namespaced_custom_object(GROUP, VERSION, self.name, PLURAL, name)

    def get(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._custom.get_namespaced_custom_object(
            GROUP, VERSION, self.name, PLURAL, name
        )
        return found

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(name).get("status") or {}
        return found

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        conditions = self.status(name).get("conditions") or []
        return next((entry for entry in conditions if entry["type"] == kind), {})

    def wait_condition(
        self, name: str, kind: str, status: str, reason: str = "", *, seconds: float = 90
    ) -> dict[str, Any]:
        def holds() -> dict[str, Any]:
            found = self.condition(name, kind)
            wanted = found.get("status") == status and reason in ("", found.get("reason"))
            return found if wanted else {}

        what = f"{self.name}/{name} has {kind}={status} {reason}"
        found: dict[str, Any] = self._wait_for(holds, seconds, what, lambda: self.get(name))
        tells_what_follows(found)
        return found

    def wait_ready(self, name: str, *, seconds: float = 120) -> None:
        """Of the newest generation: what the one before it was told says nothing of a change."""

        def holds() -> bool:
            found = self.get(name)
            told = {one["type"]: one for one in found.get("status", {}).get("conditions") or ()}
            ready = told.get("Ready", {})
            newest = bool(found["metadata"]["generation"] == ready.get("observedGeneration"))
            return newest and bool(ready["status"] == "True")

        self._wait_for(holds, seconds, f"{self.name}/{name} is ready", lambda: self.get(name))

    def pods(self, component: str = "plimsoll-worker", name: str = "") -> list[Any]:
        selector = f"app.kubernetes.io/name={component}"
        selector += f",plimsoll.dev/deployment={name}" if name else ""
        return list(self.core.list_namespaced_pod(self.name, label_selector=selector).items)

    def pod_uids(self) -> dict[str, str]:
        return {pod.metadata.name: pod.metadata.uid for pod in self.pods()}

    def limit(self, name: str, hard: dict[str, str]) -> None:
        """A ResourceQuota that leaves no room for a pod with a GPU, in force: the API server keeps to it only
        when a controller has counted what there is."""
        self.core.create_namespaced_resource_quota(
            self.name, {"metadata": {"name": name}, "spec": {"hard": hard}}
        )
        resources = {"limits": {"nvidia.com/gpu": "1"}}
        container = {"name": "c", "image": "none", "resources": resources}
        pod = {"metadata": {"name": "too-much"}, "spec": {"containers": [container]}}

        def kept() -> bool:
            try:
                self.core.create_namespaced_pod(self.name, pod, dry_run="All")
            except client.ApiException as error:
                return "exceeded quota" in str(error.body)
            return False

        self._wait_for(kept, 30, f"quota {name} is kept to")

    def revisions(self) -> list[str]:
        found = self.apps.list_namespaced_controller_revision(self.name).items
        return [revision.metadata.name for revision in found]

    def leftovers(self) -> list[str]:
        """What the operator made and is still there."""
        selector = "app.kubernetes.io/managed-by=plimsoll"
        found = [
            *self.core.list_namespaced_pod(self.name, label_selector=selector).items,
            *self.core.list_namespaced_service(self.name, label_selector=selector).items,
            *self.apps.list_namespaced_controller_revision(self.name, label_selector=selector).items,
        ]
        return [item.metadata.name for item in found]

    def events(self, name: str) -> list[str]:
        found = self.core.list_namespaced_event(self.name, field_selector=f"involvedObject.name={name}").items
        return [event.reason for event in found]

    def wait_events(self, name: str, *reasons: str, seconds: float = 30) -> None:
        """Events come in the background, later than the status that tells the same."""
        what = f"{self.name}/{name} has events {', '.join(reasons)}"
        self._wait_for(
            lambda: set(reasons) <= set(self.events(name)), seconds, what, lambda: self.events(name)
        )


@pytest.fixture
def models(
    kube: Any, namespace: str, wait_for: Callable[..., Any], fake_nodes: Callable[..., list[str]]
) -> Iterator[Namespace]:
    """The test's namespace. Its pods go before the fake nodes do: nobody would end them afterwards."""
    found = Namespace(kube, namespace, wait_for)
    yield found
    custom = client.CustomObjectsApi(kube)
    custom.delete_collection_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL)
    wait_for(lambda: not found.leftovers(), 60, f"nothing is left in {namespace}", found.leftovers)


def small(**more: Any) -> dict[str, Any]:
    """A model that fits one GPU of any kind, read from the hub."""
    return {"model": {"huggingFace": {"repo": MODEL}}, "workload": {"maxContextTokens": 1024}} | more


def revision_of(pod_name: str) -> str:
    matched = re.fullmatch(r"(.+)-r\d+-s\d+-a\d+", pod_name)
    assert matched, pod_name
    return matched[1]
