"""The CRD on a real API server: what it refuses, in which words, what it fills in, what kubectl shows."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from kubernetes import client
from tests.conftest import SLACK, _wait_for
from tests.unit.api.refused import ACCEPTED, HUB, REFUSED, Refused

from plimsoll.api.v1alpha1 import API_VERSION, GROUP, KIND, PLURAL, VERSION, LLMDeploymentSpec

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
SAMPLES = sorted((REPOSITORY / "samples").glob("*.yaml"))
Kubectl = Callable[..., str]
KUBECTL_SECONDS = 60 * SLACK


def run_kubectl(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    command = [str(binary("kubectl")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=KUBECTL_SECONDS)


@pytest.fixture(scope="module")
def kubectl(cluster: Cluster) -> Kubectl:
    """kubectl's output; the test fails when kubectl does."""

    def run(*arguments: str) -> str:
        done = run_kubectl(cluster, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module", autouse=True)
def installed(cluster: Cluster, kubectl: Kubectl) -> None:
    """The CRDs; the API server tells what it serves of them a moment after they are established."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
    kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", f"--timeout={30 * SLACK}s")
    _wait_for(
        lambda: run_kubectl(cluster, "get", "plimsoll", "--all-namespaces").returncode == 0,
        30,
        "kubectl finds our kinds",
    )


@pytest.fixture
def resources(kube: client.ApiClient) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(kube)


def manifest(spec: dict[str, Any], name: str = "x") -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def create(
    api: client.CustomObjectsApi, namespace: str, body: dict[str, Any], *, dry: bool = True
) -> dict[str, Any]:
    created: dict[str, Any] = api.create_namespaced_custom_object(
        GROUP, VERSION, namespace, PLURAL, body, field_validation="Strict", dry_run="All" if dry else None
    )
    return created


def refusal(api: client.CustomObjectsApi, body: dict[str, Any]) -> str:
    """The API server's message about an object that it must refuse."""
    with pytest.raises(client.ApiException) as refused:
        create(api, "default", body)
    return str(json.loads(refused.value.body)["message"])


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_spec_is_refused_at_its_field_with_what_to_write(
    resources: client.CustomObjectsApi, case: Refused
) -> None:
    message = refusal(resources, manifest(case.spec))
    assert f"spec.{case.where}".rstrip(".") in message
    assert case.says in message


@pytest.mark.parametrize("path", ["worklod", "model.huggingface", "placement.gpu"])
def test_an_unknown_field_is_refused_by_name(resources: client.CustomObjectsApi, path: str) -> None:
    spec: dict[str, Any] = {"model": dict(HUB)}
    *parents, last = path.split(".")
    part = spec
    for parent in parents:
        part = part.setdefault(parent, {})
    part[last] = {}
    assert f'unknown field "spec.{path}"' in refusal(resources, manifest(spec))


@pytest.mark.parametrize("name", ["a" * 41, "9a", "a.b"])
def test_a_name_that_cannot_name_a_service_is_refused(resources: client.CustomObjectsApi, name: str) -> None:
    assert "write at most 40 lower case letters, digits and '-'" in refusal(
        resources, manifest({"model": HUB}, name)
    )


@pytest.mark.parametrize("name", ["a", "a" * 40, "llama-3-1-8b"])
def test_names_of_services_are_taken(resources: client.CustomObjectsApi, name: str) -> None:
    assert create(resources, "default", manifest({"model": HUB}, name))["metadata"]["name"] == name


def test_six_lines_are_stored_with_every_default(resources: client.CustomObjectsApi) -> None:
    assert create(resources, "default", manifest({"model": HUB}))["spec"] == {
        "model": HUB,
        "workload": {"maxConcurrentSequences": 8, "objective": "FewestGPUs"},
        "quantization": {"weights": "Auto", "floor": "Native", "kvCache": "Native"},
        "parallelism": {"multiNode": "IfNeeded"},
        "placement": {
            "device": "GPU",
            "memoryHeadroomPercent": 3,
            "sharing": "Exclusive",
            "allocation": "Auto",
        },
        "plan": {"mode": "Apply", "replan": "OnPlacementFailure"},
        "replicas": 1,
        "rollout": {"strategy": "Auto", "drainSeconds": 120, "maxRestarts": 5},
        "service": {"port": 8000},
        "suspend": False,
    }


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_is_stored_means_what_was_written(
    resources: client.CustomObjectsApi, spec: dict[str, Any]
) -> None:
    stored = create(resources, "default", manifest(spec))["spec"]
    assert LLMDeploymentSpec.model_validate(stored) == LLMDeploymentSpec.model_validate(spec)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_samples_are_accepted_and_named_after_their_file(kubectl: Kubectl, sample: Path) -> None:
    shown = kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(sample), "-o", "yaml"
    )
    accepted = yaml.safe_load(shown)
    assert accepted["kind"] == KIND
    assert accepted["metadata"]["name"] == sample.stem.removesuffix("-pvc").replace(".", "-")


def test_every_sample_is_in_the_readme() -> None:
    told = (REPOSITORY / "samples/README.md").read_text()
    assert [sample.name for sample in SAMPLES if f"]({sample.name})" not in told] == []


def test_scale_reads_and_writes_replicas(
    resources: client.CustomObjectsApi, kubectl: Kubectl, namespace: str
) -> None:
    create(resources, namespace, manifest({"model": HUB}, "scaled"), dry=False)
    status = {"replicas": 1, "selector": "plimsoll.dev/deployment=scaled,plimsoll.dev/stage=0"}
    resources.patch_namespaced_custom_object_status(
        GROUP, VERSION, namespace, PLURAL, "scaled", {"status": status}
    )
    kubectl("scale", "llmdep/scaled", "--replicas=3", "-n", namespace)
    scale = resources.get_namespaced_custom_object_scale(GROUP, VERSION, namespace, PLURAL, "scaled")
    assert scale["spec"]["replicas"] == 3
    assert scale["status"] == status


def test_a_plain_write_does_not_touch_the_status(resources: client.CustomObjectsApi, namespace: str) -> None:
    body = manifest({"model": HUB}, "quiet") | {"status": {"url": "http://forged"}}
    assert "status" not in create(resources, namespace, body, dry=False)


def test_kubectl_shows_what_a_person_asks(
    resources: client.CustomObjectsApi, kubectl: Kubectl, namespace: str
) -> None:
    volume = {"persistentVolumeClaim": {"claimName": "models", "path": "smol.gguf"}}
    root = {"persistentVolumeClaim": {"claimName": "models"}}
    for name, source in (("hub", HUB), ("file", volume), ("root", root)):
        create(resources, namespace, manifest({"model": source}, name), dry=False)
    status = {
        "readyReplicas": 1,
        "url": "http://hub:8000/v1",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "message": "1 of 1 replicas answer",
                "lastTransitionTime": "2026-03-01T12:00:00Z",
            }
        ],
    }
    resources.patch_namespaced_custom_object_status(
        GROUP, VERSION, namespace, PLURAL, "hub", {"status": status}
    )
    plain, wide = (kubectl("get", "llmdep", "-n", namespace, *more) for more in ((), ("-o", "wide")))
    assert plain.splitlines()[0].split() == [
        "NAME",
        "READY",
        "REASON",
        "MODEL",
        "PLAN",
        "REPLICAS",
        "SERVING",
        "AGE",
    ]
    rows = {line.split()[0]: line.split() for line in plain.splitlines()[1:]}
    assert rows["hub"][1:6] == ["True", "Ready", "Qwen/Qwen3-32B", "1", "1"]
    assert rows["file"][1] == "smol.gguf"
    assert rows["root"][1] == "models"
    assert "http://hub:8000/v1" in wide
    assert "1 of 1 replicas answer" in wide
    assert kubectl("get", "plimsoll", "-n", namespace, "-o", "name").splitlines() == [
        f"llmdeployment.{GROUP}/{name}" for name in ("file", "hub", "root")
    ]


def test_kubectl_explains_the_fields(cluster: Cluster, wait_for: Callable[..., Any]) -> None:
    """The API server publishes the schema some seconds after the CRD is established."""

    def explained() -> str:
        return run_kubectl(cluster, "explain", "llmdep.spec.placement.device").stdout

    text = wait_for(explained, 30, "the schema of LLMDeployment is published")
    assert "CPU is used only when it is asked for here" in text
