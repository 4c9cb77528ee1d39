"""Builders: what is in a pod, and what is never in one."""

from __future__ import annotations

import gc
import itertools
import json
import re
from typing import Any

import pytest
from tests.unit.cluster.world import facts

from plimsoll.actuate import revisions
from plimsoll.actuate.ownership import Owner
from plimsoll.actuate.pods import PodDefaults, inspect_pod, worker_pod
from plimsoll.actuate.revisions import Revision, fingerprint, model_key, wanted_revision
from plimsoll.actuate.services import headless_service, service, url
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanPlacement, PlanStatus, StageMemory
from plimsoll.inventory.nodes import effective_requests, pod_view
from plimsoll.inventory.views import Resources
from plimsoll_worker.launch import Device, Launch, Precision, PredictedMemory

OWNER = Owner("models", "small", "uid-1")
DEFAULTS = PodDefaults("operator:1", "IfNotPresent", "http://hub.test", 300)
HUB: dict[str, Any] = {"model": {"huggingFace": {"repo": "acme/small", "revision": "v2"}}}
CLAIM: dict[str, Any] = {"model": {"persistentVolumeClaim": {"claimName": "weights", "path": "llm/small"}}}
REQUESTS = Resources(
    cpu_millis=1500, memory_bytes=5 << 30, ephemeral_bytes=1 << 30, pods=1, extended={"nvidia.com/gpu": 1}
)


def spec(given: dict[str, Any], **more: Any) -> LLMDeploymentSpec:
    return LLMDeploymentSpec.model_validate(given | more)


def revision(given: LLMDeploymentSpec, **changes: Any) -> Revision:
    return wanted_revision(OWNER, given, facts().model_copy(update=changes), (), "worker:1")


def plan(device: Device = Device.GPU) -> PlanStatus:
    predicted = PredictedMemory(
        weights=100, kv_cache=64, activations=1, cuda_graphs=0, communication=0, runtime=2, fragmentation=3
    )
    return PlanStatus(
        revision="small-1",
        id="abcd",
        summary="",
        device=device,
        product="NVIDIA-L4" if device is Device.GPU else "",
        resource_name="nvidia.com/gpu" if device is Device.GPU else "",
        weights=Precision.BF16,
        kv_cache=Precision.BF16,
        tensor_parallel=1,
        pipeline_parallel=1,
        stage_layers=[4],
        max_batched_tokens=2048,
        max_context_tokens=4096,
        kv_cache_tokens=1024,
        kv_cache_bytes=64,
        memory=[StageMemory(stage=0, predicted=predicted, line=1000, total=predicted.total)],
        host_memory_bytes=5 << 30,
        placements=[PlanPlacement(replica=0, stage=0, node="g", gpus=1)],
    )


def worker(given: LLMDeploymentSpec, device: Device = Device.GPU, **changes: Any) -> dict[str, Any]:
    placement = PlanPlacement(replica=2, stage=0, node="g", gpus=1)
    return worker_pod(revision(given, **changes), plan(device), placement, 3, REQUESTS, DEFAULTS)


def staged_worker(
    given: LLMDeploymentSpec, stage: int, *, replica: int = 0, attempt: int = 0
) -> dict[str, Any]:
    """A pod of a replica of two stages with 3 and 1 layers."""
    [memory] = plan().memory
    staged = plan().model_copy(
        update={
            "pipeline_parallel": 2,
            "stage_layers": [3, 1],
            "memory": [memory.model_copy(update={"stage": number}) for number in range(2)],
        }
    )
    placement = PlanPlacement(replica=replica, stage=stage, node="g", gpus=1)
    return worker_pod(revision(given), staged, placement, attempt, REQUESTS, DEFAULTS)


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    entries = pod["spec"]["containers"][0]["env"]
    assert len({entry["name"] for entry in entries}) == len(entries), "a name given twice"
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


def launch(pod: dict[str, Any]) -> Launch:
    return Launch.from_env({"PLIMSOLL_LAUNCH": environment(pod)["PLIMSOLL_LAUNCH"]})


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(inspect_pod(OWNER, spec(HUB), DEFAULTS), id="inspect hub"),
        pytest.param(inspect_pod(OWNER, spec(CLAIM), DEFAULTS), id="inspect claim"),
        pytest.param(worker(spec(HUB)), id="worker hub"),
        pytest.param(worker(spec(CLAIM)), id="worker claim"),
    ],
)
def test_every_pod_is_restricted_and_owned(pod: dict[str, Any]) -> None:
    body, container = pod["spec"], pod["spec"]["containers"][0]
    assert body["automountServiceAccountToken"] is False
    assert body["securityContext"]["runAsNonRoot"] is True
    assert body["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "nodeName" not in body
    assert not any("hostPath" in volume for volume in body["volumes"])
    assert all(
        volume["persistentVolumeClaim"]["readOnly"]
        for volume in body["volumes"]
        if "persistentVolumeClaim" in volume
    )
    owner = pod["metadata"]["ownerReferences"]
    assert [(ref["uid"], ref["controller"], ref["blockOwnerDeletion"]) for ref in owner] == [
        ("uid-1", True, True)
    ]
    assert "finalizers" not in pod["metadata"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in body["volumes"]}
    json.dumps(pod)


@pytest.mark.parametrize(
    ("given", "source"),
    [
        pytest.param(HUB, "hf://acme/small@v2", id="hub"),
        pytest.param({"model": {"huggingFace": {"repo": "acme/small"}}}, "hf://acme/small", id="no revision"),
        pytest.param(CLAIM, "/models/llm/small", id="claim"),
        pytest.param({"model": {"persistentVolumeClaim": {"claimName": "weights"}}}, "/models", id="root"),
    ],
)
def test_an_inspect_pod_reads_the_source_and_leaves_a_message(given: dict[str, Any], source: str) -> None:
    container = inspect_pod(OWNER, spec(given), DEFAULTS)["spec"]["containers"][0]
    assert container["command"] == ["plimsoll", "inspect", source]
    assert container["args"] == ["--output-termination-message", container["terminationMessagePath"]]


def test_an_inspect_pod_takes_no_gpu_node_and_ends_by_itself() -> None:
    pod = inspect_pod(OWNER, spec(HUB), DEFAULTS)["spec"]
    assert "tolerations" not in pod
    assert "affinity" not in pod
    assert pod["restartPolicy"] == "Never"
    assert pod["activeDeadlineSeconds"] == 300


def test_tokens_come_from_secrets_and_are_in_no_text() -> None:
    given = spec(
        {"model": HUB["model"] | {"credentialsSecretRef": {"name": "hf", "key": "k"}}},
        service={"apiKeySecretRef": {"name": "api"}},
    )
    for pod in (inspect_pod(OWNER, given, DEFAULTS), worker(given)):
        assert environment(pod)["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "k"}}
    assert environment(worker(given))["PLIMSOLL_API_KEY"] == {"secretKeyRef": {"name": "api", "key": "token"}}


def test_a_worker_is_pinned_by_affinity_and_named_by_its_place() -> None:
    pod = worker(spec(HUB))
    view = pod_view(pod)
    assert view is not None
    assert (view.pinned_node, view.node) == ("g", "")
    assert pod["metadata"]["name"] == "small-1-r2-s0-a3".replace("small-1", revision(spec(HUB)).name)
    assert pod["metadata"]["labels"]["plimsoll.dev/attempt"] == "3"


def test_a_worker_asks_for_exactly_what_was_planned() -> None:
    pod = worker(spec(HUB))
    assert effective_requests(pod["spec"], {}) == REQUESTS
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": str(5 << 30), "nvidia.com/gpu": "1"}


def test_the_launch_says_the_plan() -> None:
    found = launch(worker(spec(HUB)))
    assert (found.plan_id, found.replica, found.attempt) == ("abcd", 2, 3)
    assert found.hub is not None
    assert (found.hub.repo, found.hub.commit) == ("acme/small", "c0ffee")
    assert (found.layers.first, found.layers.last) == (0, 4)
    assert (found.line, found.kv_cache_bytes, found.predicted.total) == (1000, 64, 170)
    assert found.served_name == "small"
    assert launch(worker(spec({"model": HUB["model"] | {"servedName": "chat"}}))).served_name == "chat"


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_is_found_under_the_name_that_its_siblings_are_told(stage: int) -> None:
    pod = staged_worker(spec(HUB), stage, replica=1, attempt=2)
    told = launch(pod)
    assert told.rendezvous is not None
    mine = told.rendezvous.stages[stage]
    domain = f"{headless_service(OWNER)['metadata']['name']}.models.svc"
    assert mine.host == f"{pod['spec']['hostname']}.{domain}"
    assert pod["spec"]["subdomain"] == headless_service(OWNER)["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert ports["stages"] == mine.port
    assert headless_service(OWNER)["spec"]["ports"][0]["targetPort"] == "stages"
    assert (told.layers.first, told.layers.last) == ((0, 3), (3, 4))[stage]
    other = launch(staged_worker(spec(HUB), 1 - stage, replica=1, attempt=2))
    assert other.rendezvous == told.rendezvous


def test_no_two_pods_of_a_deployment_have_the_same_hostname_and_none_is_too_long() -> None:
    places = itertools.product((0, 63), range(2), (0, 2**31))
    pods = [staged_worker(spec(HUB), stage, replica=r, attempt=a) for r, stage, a in places]
    names = {pod["spec"]["hostname"] for pod in pods}
    assert len(names) == len(pods)
    assert all(len(name) <= 63 and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)


def test_a_worker_that_is_alone_meets_nobody() -> None:
    pod = worker(spec(HUB))
    assert launch(pod).rendezvous is None
    assert not {"hostname", "subdomain", "schedulingGates"} & pod["spec"].keys()
    assert [port["name"] for port in pod["spec"]["containers"][0]["ports"]] == ["http", "admin"]


def test_stages_get_the_time_to_meet_on_top() -> None:
    def seconds(pod: dict[str, Any]) -> int:
        probe = pod["spec"]["containers"][0]["startupProbe"]
        return int(probe["periodSeconds"] * probe["failureThreshold"])

    met = launch(staged_worker(spec(HUB), 0)).rendezvous
    assert met is not None
    assert seconds(staged_worker(spec(HUB), 0)) == seconds(worker(spec(HUB))) + met.seconds


@pytest.mark.parametrize(
    ("path", "file", "expected"),
    [
        pytest.param("", "", "/models", id="root"),
        pytest.param("llm/small", "", "/models/llm/small", id="folder"),
        pytest.param("llm", "small.gguf", "/models/llm/small.gguf", id="GGUF in a folder"),
        pytest.param("llm/small.gguf", "small.gguf", "/models/llm/small.gguf", id="GGUF named"),
    ],
)
def test_where_a_claim_holds_the_model(path: str, file: str, expected: str) -> None:
    given = spec({"model": {"persistentVolumeClaim": {"claimName": "weights", "path": path}}})
    assert launch(worker(given, file=file)).model_path == expected


def test_the_users_environment_overrides_the_hub_and_never_the_plan() -> None:
    given = spec(HUB, podTemplate={"env": [{"name": "HF_ENDPOINT", "value": "http://mine"}]})
    assert environment(worker(given))["HF_ENDPOINT"] == "http://mine"
    assert environment(worker(spec(HUB)))["HF_ENDPOINT"] == "http://hub.test"


def test_the_overlay_reaches_the_pod() -> None:
    overlay = {
        "labels": {"team": "blue"},
        "annotations": {"note": "x"},
        "imagePullSecrets": [{"name": "pull"}],
        "runtimeClassName": "nvidia",
    }
    placement = {
        "priorityClassName": "high",
        "tolerations": [{"key": "spot", "operator": "Exists"}],
    }
    given = spec(HUB, podTemplate=overlay, placement=placement, rollout={"drainSeconds": 45})
    pod = worker(given)
    assert pod["metadata"]["labels"]["team"] == "blue"
    assert pod["metadata"]["annotations"]["note"] == "x"
    body = pod["spec"]
    assert body["imagePullSecrets"] == [{"name": "pull"}]
    assert (body["runtimeClassName"], body["priorityClassName"]) == ("nvidia", "high")
    assert {"key": "spot", "operator": "Exists"} in body["tolerations"]
    assert body["terminationGracePeriodSeconds"] == 75
    assert environment(pod)["PLIMSOLL_DRAIN_SECONDS"] == "45"
    assert inspect_pod(OWNER, given, DEFAULTS)["spec"]["imagePullSecrets"] == [{"name": "pull"}]


def test_gpu_workers_tolerate_gpu_pools_and_cpu_workers_do_not() -> None:
    assert [entry["key"] for entry in worker(spec(HUB))["spec"]["tolerations"]] == ["nvidia.com/gpu"]
    on_cpu = spec(HUB, placement={"device": "CPU"})
    assert worker(on_cpu, Device.CPU)["spec"]["tolerations"] == []


def test_bigger_models_get_more_time_to_start() -> None:
    def seconds(checkpoint_bytes: int) -> int:
        probe = worker(spec(HUB), checkpoint_bytes=checkpoint_bytes)["spec"]["containers"][0]["startupProbe"]
        return int(probe["periodSeconds"] * probe["failureThreshold"])

    assert seconds(1 << 30) >= 300
    assert seconds(800 << 30) >= 300 + (800 << 30) // (20 << 20)


# --- revisions


def test_a_revision_survives_its_object() -> None:
    found = revision(spec(CLAIM))
    first, second = Revision.parse(found.to_object()), Revision.parse(found.to_object())
    assert first == found
    assert first is not None
    assert second is not None
    assert first.facts is second.facts, "planning sizes what is one object once"


@pytest.mark.parametrize(
    "damage",
    [{"data": {}}, {"data": None}, {"data": {"facts": "x", "spec": {}}}, {"metadata": {"name": "x"}}],
)
def test_a_revision_that_is_damaged_or_not_ours_is_none(damage: dict[str, Any]) -> None:
    assert Revision.parse(revision(spec(CLAIM)).to_object() | damage) is None


@pytest.mark.parametrize(
    "change",
    [{"replicas": 5}, {"suspend": True}, {"plan": {"mode": "PlanOnly"}}, {"service": {"port": 80}}],
)
def test_what_is_not_in_pods_makes_no_new_revision(change: dict[str, Any]) -> None:
    assert fingerprint(spec(HUB, **change), facts()) == fingerprint(spec(HUB), facts())


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"image": "worker:2"}},
        {"workload": {"maxConcurrentSequences": 2}},
        {"podTemplate": {"env": [{"name": "A", "value": "b"}]}},
        {"rollout": {"drainSeconds": 5}},
        {"service": {"apiKeySecretRef": {"name": "api"}}},
        {"placement": {"nodeSelector": {"zone": "b"}}},
    ],
)
def test_what_is_in_pods_makes_a_new_revision(change: dict[str, Any]) -> None:
    assert fingerprint(spec(HUB, **change), facts()) != fingerprint(spec(HUB), facts())


def test_a_revision_is_found_again_with_another_default_image() -> None:
    old = revision(spec(HUB))
    again = wanted_revision(OWNER, spec(HUB), facts(), [old], "worker:2")
    assert again == old
    other = wanted_revision(
        OWNER, spec(HUB, replicas=1, rollout={"drainSeconds": 1}), facts(), [old], "worker:2"
    )
    assert (other.number, other.worker_image) == (2, "worker:2")


def test_explicit_defaults_are_no_change() -> None:
    assert fingerprint(spec(HUB, rollout={"drainSeconds": 120}), facts()) == fingerprint(spec(HUB), facts())


def test_the_served_name_is_not_part_of_the_model() -> None:
    named = spec({"model": HUB["model"] | {"servedName": "chat"}})
    assert model_key(named.model) == model_key(spec(HUB).model)


# --- services


def test_services_select_ready_first_stages_and_all_workers() -> None:
    front, workers = service(OWNER, spec(HUB, service={"port": 80})), headless_service(OWNER)
    labels = worker(spec(HUB))["metadata"]["labels"]
    for found in (front, workers):
        assert found["spec"]["selector"].items() <= labels.items()
    assert front["spec"]["selector"]["plimsoll.dev/stage"] == "0"
    assert front["spec"]["ports"][0] | {"targetPort": "http"} == front["spec"]["ports"][0]
    assert front["spec"]["ports"][0]["port"] == 80
    assert workers["spec"]["publishNotReadyAddresses"] is True
    assert url(OWNER, spec(HUB, service={"port": 80})) == "http://small.models.svc:80/v1"
    assert not set(front["spec"]["selector"].items()) <= set(
        inspect_pod(OWNER, spec(HUB), DEFAULTS)["metadata"]["labels"].items()
    )


def test_a_fingerprint_is_forgotten_with_its_spec() -> None:
    known = len(revisions._FINGERPRINTS)
    asked = spec(HUB)
    fingerprint(asked, facts())
    assert len(revisions._FINGERPRINTS) == known + 1
    del asked
    gc.collect()
    assert len(revisions._FINGERPRINTS) == known
