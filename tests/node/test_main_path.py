"""From a manifest to a token on a real kubelet, and the same when the operator is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from dev.demo import model_volume
from dev.hub.repository import Repository
from dev.hub.server import serve
from dev.hub.smollm2 import smollm2_folder
from dev.image import ensure_images
from kubernetes import client
from tests.cluster.api_proxy import ApiProxy, Request
from tests.cluster.operator_process import OperatorProcess
from tests.conftest import SLACK

from plimsoll.api.v1alpha1 import GROUP, PLURAL, VERSION
from plimsoll.inventory.quantity import at_least

pytestmark = [pytest.mark.cluster, pytest.mark.node]

ROOT = Path(__file__).parents[2]
PROMPT = "The capital of France is"
READY_SECONDS = 180


@dataclass
class Census:
    """Every worker pod a namespace ever had, from a watch: two of the same place at one time is a fault."""

    core: client.CoreV1Api
    namespace: str
    alive: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def start(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="census")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        """Short watches, each from where the last one ended: nothing is missed, stopping takes a second."""
        version = "0"
        while not self._stopped.is_set():
            answer = self.core.list_namespaced_pod(
                self.namespace,
                watch=True,
                resource_version=version,
                timeout_seconds=1,
                _preload_content=False,
            )
            for line in answer:
                event = json.loads(line)
                version = event["object"]["metadata"]["resourceVersion"]
                self._see(event["type"], event["object"]["metadata"])
            answer.release_conn()

    def _see(self, kind: str, pod: dict[str, Any]) -> None:
        labels, uid = pod.get("labels", {}), pod["uid"]
        if labels.get("app.kubernetes.io/name") != "plimsoll-worker":
            return
        if kind == "DELETED":
            self.alive.pop(uid, None)
            return
        place = (
            labels["plimsoll.dev/deployment"],
            labels["plimsoll.dev/replica"],
            labels["plimsoll.dev/stage"],
        )
        if uid not in self.alive and place in self.alive.values():
            self.faults.append(f"second pod {pod['name']} for {place}")
        self.alive[uid] = place
        self.workers.add(uid)


class Scene:
    """One namespace with a model on a volume, an operator behind a proxy, and what a user does."""

    def __init__(
        self, cluster: Cluster, kube: Any, namespace: str, folder: Path, wait_for: Callable[..., Any]
    ) -> None:
        self.core, self.resources = client.CoreV1Api(kube), client.CustomObjectsApi(kube)
        self.namespace, self._cluster, self._folder, self._wait_for = namespace, cluster, folder, wait_for
        self.census = Census(self.core, namespace)
        self.census.start()

    def apply(self, sample: str) -> str:
        body = yaml.safe_load((ROOT / "samples" / sample).read_text())
        # Small enough that four of them fit the node beside everything else.
        body["spec"]["workload"] = {
            "maxContextTokens": 512,
            "maxConcurrentSequences": 2,
            "maxBatchedTokens": 256,
        }
        self.resources.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        name: str = body["metadata"]["name"]
        return name

    def get(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.resources.get_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, name
        )
        return found

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        conditions = self.get(name).get("status", {}).get("conditions", [])
        return next(
            (c for c in conditions if c["type"] == kind), {"status": "Unknown", "reason": "", "message": ""}
        )

    def workers(self, name: str) -> list[Any]:
        selector = f"app.kubernetes.io/name=plimsoll-worker,plimsoll.dev/deployment={name}"
        pods: list[Any] = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return pods

    def wait(self, fn: Callable[[], Any], what: str, name: str, seconds: float = READY_SECONDS) -> Any:
        return self._wait_for(fn, seconds, what, lambda: self.get(name))

    def wait_ready(self, name: str) -> None:
        """Of the newest generation."""

        def holds() -> bool:
            newest, ready = self.get(name)["metadata"]["generation"], self.condition(name, "Ready")
            return bool(ready["status"] == "True" and ready["observedGeneration"] == newest)

        self.wait(holds, f"{name} is Ready", name)

    def reached(self, name: str) -> str:
        """The URL of the Service, which leads to a worker: the node learns of endpoints later than the
        operator of a pod that is ready."""
        service = self.core.read_namespaced_service(name, self.namespace).spec
        url = f"http://{service.cluster_ip}:{service.ports[0].port}/v1"

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/models", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        self.wait(answers, f"the Service of {name} leads to a worker", name, 30)
        return url

    def complete(self, name: str) -> str:
        """A streamed greedy completion through the Service."""
        api = openai.OpenAI(base_url=self.reached(name), api_key="none", timeout=60 * SLACK, max_retries=3)
        stream = api.completions.create(model=name, prompt=PROMPT, max_tokens=12, temperature=0, stream=True)
        return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    def delete_and_expect_nothing(self, name: str, seconds: float = 90) -> None:
        self.resources.delete_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, name, propagation_policy="Background"
        )
        apps = client.AppsV1Api(self.core.api_client)

        def left() -> list[str]:
            pods = self.core.list_namespaced_pod(self.namespace).items
            services = self.core.list_namespaced_service(self.namespace).items
            revisions = apps.list_namespaced_controller_revision(self.namespace).items
            return [found.metadata.name for found in (*pods, *services, *revisions)]

        self._wait_for(lambda: not left(), seconds, "nothing of it is left", left)


@pytest.fixture(scope="module")
def images(cluster: Cluster) -> list[str]:
    """CRDs and images of the code as it is now, known to the cluster."""
    command = [
        str(binary("kubectl")),
        "--kubeconfig",
        str(cluster.kubeconfig),
        "apply",
        "-f",
        str(ROOT / "crds"),
    ]
    subprocess.run([*command, "--server-side", "--force-conflicts"], check=True, capture_output=True)
    return ensure_images(cluster)


@pytest.fixture
def scene(
    cluster: Cluster,
    kube: Any,
    namespace: str,
    images: list[str],
    real_node: str,
    wait_for: Callable[..., Any],
) -> Iterator[Scene]:
    folder = model_volume.place_model(cluster.paths.root / "models")
    core = client.CoreV1Api(kube)
    core.create_persistent_volume(model_volume.volume(namespace, folder, real_node))
    core.create_namespaced_persistent_volume_claim(
        namespace, model_volume.claim("smollm2", namespace, namespace)
    )
    scene = Scene(cluster, kube, namespace, folder, wait_for)
    try:
        yield scene
    finally:
        scene.census.stop()
        core.delete_persistent_volume(namespace)


@pytest.fixture
def operators(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """`operators(kubeconfig=None, **settings)` starts one; all are gone after the test."""
    started: list[OperatorProcess] = []
    log = tmp_path / "operator.log"

    def start(kubeconfig: Path | None = None, **settings: str) -> OperatorProcess:
        operator = OperatorProcess(kubeconfig or cluster.kubeconfig, log, **settings)
        started.append(operator)
        return operator

    yield start
    for operator in started:
        operator.kill()
    if log.exists():
        print(log.read_text()[-20_000:])


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What the worker said in each scene: every one must be the same."""
    return {}


def check_answer(answers: dict[str, str], case: str, text: str) -> None:
    assert "Paris" in text
    answers[case] = text
    assert len(set(answers.values())) == 1, answers


def check_promises(kube: Any) -> None:
    """No node gave away more than it has, counted from the API."""
    core = client.CoreV1Api(kube)
    pods = core.list_pod_for_all_namespaces(
        field_selector="status.phase!=Failed,status.phase!=Succeeded"
    ).items
    for node in core.list_node().items:
        requested = [
            at_least(container.resources.requests["memory"])
            for pod in pods
            if pod.spec.node_name == node.metadata.name
            for container in pod.spec.containers
            if container.resources.requests and "memory" in container.resources.requests
        ]
        assert sum(requested) <= at_least(node.status.allocatable["memory"]), node.metadata.name


def test_a_model_on_a_volume_answers_and_goes_without_a_trace(
    scene: Scene, operators: Callable[..., OperatorProcess], kube: Any, answers: dict[str, str]
) -> None:
    operators()
    name = scene.apply("smollm2-pvc.yaml")
    scene.wait_ready(name)
    check_answer(answers, "volume", scene.complete(name))
    verified = scene.wait(
        lambda: (c := scene.condition(name, "Verified"))["status"] == "True" and c,
        "the report was read",
        name,
        60,
    )
    assert verified
    [measured] = scene.get(name)["status"]["measured"]
    assert measured["device"] == "CPU"
    check_promises(kube)
    scene.delete_and_expect_nothing(name)
    assert not scene.census.faults


def test_the_same_weights_from_a_hub_answer_the_same(
    scene: Scene, operators: Callable[..., OperatorProcess], cluster: Cluster, answers: dict[str, str]
) -> None:
    repository = Repository.from_folder("HuggingFaceTB/SmolLM2-135M-Instruct", smollm2_folder())
    with serve([repository], cluster.host_address, 0) as hub:
        operators(hf_endpoint=hub.url)
        name = scene.apply("smollm2-hub.yaml")
        scene.wait_ready(name)
        check_answer(answers, "hub", scene.complete(name))
        commit = scene.get(name)["status"]["model"]["revision"]
        [launched] = [
            json.loads(variable.value)
            for variable in scene.workers(name)[0].spec.containers[0].env
            if variable.name == "PLIMSOLL_LAUNCH"
        ]
        assert launched["hub"] == {"repo": "HuggingFaceTB/SmolLM2-135M-Instruct", "commit": commit}
        scene.delete_and_expect_nothing(name)


def writes_plan(request: Request) -> bool:
    return request.is_write and request.path.endswith("/status") and b'"plans": [{' in _spaced(request.body)


def creates_worker(request: Request) -> bool:
    return request.method == "POST" and request.path.endswith("/pods") and b"plimsoll-worker" in request.body


def writes_service(request: Request) -> bool:
    return request.is_write and "/services" in request.path


def _spaced(body: bytes) -> bytes:
    try:
        return json.dumps(json.loads(body)).encode()
    except ValueError:
        return body


BETWEEN_WRITES = {
    "before the plan is written": writes_plan,
    "between plan and pods": creates_worker,
    "between pods and Service": writes_service,
}


@pytest.mark.parametrize("moment", BETWEEN_WRITES)
def test_a_kill_between_two_writes_loses_and_doubles_nothing(
    moment: str,
    scene: Scene,
    operators: Callable[..., OperatorProcess],
    cluster: Cluster,
    kube: Any,
    tmp_path: Path,
    answers: dict[str, str],
) -> None:
    with ApiProxy(cluster.kubeconfig, tmp_path) as proxy:
        operator = operators(proxy.kubeconfig)
        tripped = threading.Event()

        def kill_at(request: Request) -> bool:
            if not tripped.is_set() and BETWEEN_WRITES[moment](request):
                operator.kill()
                tripped.set()
            return tripped.is_set()

        proxy.tripwire = kill_at
        name = scene.apply("smollm2-pvc.yaml")
        scene.wait(tripped.is_set, f"the operator was killed {moment}", name, 90)
        assert not operator.running
    operators()
    scene.wait_ready(name)
    check_answer(answers, moment, scene.complete(name))
    assert len(scene.workers(name)) == 1
    scene.wait(lambda: scene.census.workers, "the census has seen a worker", name, 30)
    assert len(scene.census.workers) == 1
    assert not scene.census.faults
    check_promises(kube)
    scene.delete_and_expect_nothing(name)


def test_a_kill_while_the_worker_loads_and_when_it_is_ready_disturbs_no_pod(
    scene: Scene, operators: Callable[..., OperatorProcess], kube: Any, answers: dict[str, str]
) -> None:
    first = operators()
    name = scene.apply("smollm2-pvc.yaml")

    def loading() -> Any:
        pods = scene.workers(name)
        return [
            pod
            for pod in pods
            if pod.status.phase == "Running" and not pod.status.container_statuses[0].ready
        ]

    [pod] = scene.wait(loading, "the worker is loading", name, 90)
    first.kill()
    second = operators()
    scene.wait_ready(name)
    before = scene.get(name)["status"]
    second.kill()
    check_answer(answers, "while no operator runs", scene.complete(name))
    third = operators()
    scene.wait(third.ready, "the third operator is synced", name, 60)
    scene.wait_ready(name)
    check_answer(answers, "killed while loading and when ready", scene.complete(name))
    [same] = scene.workers(name)
    assert (same.metadata.uid, same.status.container_statuses[0].restart_count) == (pod.metadata.uid, 0)
    assert scene.get(name)["status"]["plans"] == before["plans"]
    assert len(scene.census.workers) == 1
    check_promises(kube)
    scene.delete_and_expect_nothing(name)


def test_a_worker_deleted_while_it_starts_is_gone_at_once(
    scene: Scene, operators: Callable[..., OperatorProcess]
) -> None:
    operators()
    name = scene.apply("smollm2-pvc.yaml")

    def started() -> bool:
        statuses = [status for pod in scene.workers(name) for status in pod.status.container_statuses or []]
        return any(status.state.running for status in statuses)

    scene.wait(started, "the worker's process runs", name, 90)
    scene.delete_and_expect_nothing(name, seconds=30)
