"""What every fault happens on: a control plane of its own, a hundred fake GPU nodes, an operator behind a
proxy, workers that answer, somebody else's deployment that must not notice, and a watch for GPUs promised
twice that never looks away.

The suite has a cluster of its own because it ends API servers and deletes CRDs. One operator serves many
cases; a case that kills it leaves the next one with a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import urllib3
from dev.cluster import lifecycle
from dev.cluster.control_plane import Fakes
from dev.cluster.description import Cluster
from dev.cluster.nodes import NodePool, expand
from dev.cluster.processes import ProcessTable
from kubernetes import client
from tests.cluster.api_proxy import ApiProxy, Request
from tests.cluster.faults.workers import Workers
from tests.cluster.lifecycle.conftest import Namespace, serves_our_kinds
from tests.cluster.lifecycle.operator_process import ROUNDS, Operator
from tests.cluster.lifecycle.promises import PromiseWatch
from tests.unit.cluster.world import facts

from plimsoll.api.v1alpha1 import GROUP, PLURAL, VERSION
from plimsoll.cluster.kube import PODS, NotFound

GPU_NODES = 100
L4 = NodePool("l4", "NVIDIA-L4", GPU_NODES, 1, 23034, "8.9", "16", "64Gi", "350Gi", 58)
H100 = NodePool("h100", "NVIDIA-H100-80GB-HBM3", 1, 8, 81559, "9.0", "192", "2Ti", "25Ti")
FOR_INSPECTION = NodePool("cpu", "", 1, 0, 0, "0.0", "64", "256Gi")
NODES = (L4, H100, FOR_INSPECTION)


def _addresses_of_nobody() -> str:
    """A network of loopback addresses, held until this run ends: another run finds it taken."""
    for number in range(65, 215):
        held = socket.socket()
        try:
            held.bind((f"127.{number}.255.254", HOLDING_PORT))
        except OSError:
            held.close()
        else:
            atexit.register(held.close)
            return f"127.{number}.0.1/16"
    raise RuntimeError("150 runs have taken 127.65.0.0 to 127.214.0.0; end one of them")


HOLDING_PORT = 64999
HERE = _addresses_of_nobody()
"""Addresses of this run's pods."""
FAKES = Fakes(pod_cidr=HERE, lease_seconds=400, grace_seconds=300)
SETTINGS = {"replan_seconds": "1", "worker_image": "plimsoll.dev/worker:test"}
BYSTANDERS = "bystanders"
MODEL = "acme/small"
REVIVE_SECONDS = 0.5
PATIENCE_SECONDS = 60
"""On a machine with nothing else to do; `wait_for` gives a busy one more. No case asserts how fast anything
is."""

WaitFor = Callable[..., Any]
Fate = Callable[[Mapping[str, Any]], Mapping[str, str]]
"""Annotations that a new pod is born with; empty: it does well."""


class Watch(PromiseWatch):
    """Also plays those who live in pods: inspections find a model, workers answer."""

    def __init__(self, api: Any, workers: Workers) -> None:
        gpus = {f"{pool.name}-{number}": pool.gpus for pool in NODES for number in range(pool.nodes)}
        super().__init__(api, gpus)
        self._workers = workers
        self.fates: dict[tuple[str, str], Fate] = {}
        """What becomes of new worker pods of a deployment, by its namespace and name."""

    def pod_seen(self, event: str, pod: Mapping[str, Any]) -> None:
        component = (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/name")
        if component == "plimsoll-worker":
            self._workers.seen(event, pod)
        elif component == "plimsoll-inspect" and event == "ADDED":
            meta, told = pod["metadata"], ended(0, facts().pack())
            with contextlib.suppress(NotFound):
                self._kube.merge(PODS, meta["namespace"], meta["name"], {"metadata": {"annotations": told}})

    def born(self, request: Request) -> bytes:
        """The body of a request of the operator, with the fate of the worker pod that it creates. Whoever
        tells a pod its fate when it is there may find it ready already."""
        if request.method != "POST" or not request.path.endswith("/pods"):
            return request.body
        pod = json.loads(request.body)
        labels, namespace = pod["metadata"]["labels"], request.path.split("/")[-2]
        fate = self.fates.get((namespace, labels.get("plimsoll.dev/deployment", "")))
        if fate is None or labels["app.kubernetes.io/name"] != "plimsoll-worker":
            return request.body
        pod["metadata"]["annotations"] = pod["metadata"].get("annotations", {}) | fate(pod)
        return json.dumps(pod).encode()


def ended(code: int, message: str) -> dict[str, str]:
    """Annotations with which a fake pod's container ends."""
    return {"plimsoll.dev/fake-exit-code": str(code), "plimsoll.dev/fake-exit-message": message}


@dataclass
class Ground:
    cluster: Cluster
    kube: Any
    proxy: ApiProxy
    watch: Watch
    workers: Workers
    log: Path
    wait_for: WaitFor
    _operators: list[Operator] = field(default_factory=list)
    _kind: type[Operator] = Operator
    _settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)
    _bystanders: dict[str, tuple[str, int]] = field(default_factory=dict)

    # --- the operator

    @property
    def operator(self) -> Operator:
        """The one that runs; a new one where none does."""
        return self._operators[-1] if self.running else self.start_operator()

    @property
    def running(self) -> bool:
        return bool(self._operators) and self._operators[-1].running

    def rounds(self) -> float:
        """That the one which runs has planned; 0 where none does, or it has no page yet."""
        answers = self.running and self._operators[-1].page("/metrics")[0] == 200
        return self._operators[-1].metric(ROUNDS) if answers else 0

    def start_operator(self) -> Operator:
        return self._launch().wait_ready()

    def _launch(self) -> Operator:
        process = self._kind(self.proxy.kubeconfig, self.log, **self._settings)
        self._operators.append(process)
        return process

    def kill_operator(self) -> None:
        self._operators[-1].kill()

    @contextlib.contextmanager
    def another_operator(self, kind: type[Operator] = Operator, **settings: str) -> Iterator[None]:
        """One with other settings takes over; after the block one as before again."""
        self._replace(kind, SETTINGS | settings)
        try:
            yield
        finally:
            self._replace(Operator, SETTINGS)

    def _replace(self, kind: type[Operator], settings: Mapping[str, str]) -> None:
        """The one that runs gets a SIGTERM, as in a roll-out."""
        if self.running:
            self._operators[-1].stop()
        self._kind, self._settings = kind, settings
        self.start_operator()

    @contextlib.contextmanager
    def revived(self) -> Iterator[None]:
        """Whenever the operator ends, another one starts, as a kubelet would see to it."""
        stopping = threading.Event()

        def revive() -> None:
            while not stopping.wait(REVIVE_SECONDS):
                if not self.running:
                    self._launch()

        thread = threading.Thread(target=revive, name="revive")
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def end(self) -> None:
        for process in self._operators:
            process.kill()

    # --- the control plane

    @contextlib.contextmanager
    def down(self, *names: str) -> Iterator[None]:
        """Those processes of the control plane are killed, and started again after the block as they were."""
        table = ProcessTable(self.cluster.paths)
        lines = {}
        for record in table.recorded():
            if record.name in names and (process := record.find()):
                lines[record.name] = process.cmdline()
        assert lines.keys() == set(names), f"{sorted(names)} run: {sorted(lines)}"
        for name in names:
            table.end(name)
        try:
            yield
        finally:
            for name, line in lines.items():
                table.start(name, line)
            self.wait_for(self._api_answers, PATIENCE_SECONDS, "the API server answers")

    def _api_answers(self) -> bool:
        """It is ready, and answers for kinds that a CRD describes: to those it says 503 until it has read the
        CRDs. Before it is ready, it refuses writes that it cannot judge."""
        with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
            ready = self.kube.call_api("GET", f"{self.kube.configuration.host}/readyz", _request_timeout=5)
            return bool(ready.status == 200) and serves_our_kinds(self.kube)
        return False

    # --- those who must not notice

    def settle_bystanders(self) -> None:
        """Their deployment is there, and ready."""
        self.operator  # noqa: B018
        models = Namespace(self.kube, BYSTANDERS, self.wait_for)
        models.apply("bystander", deployment(replicas=2))
        models.wait_ready("bystander", seconds=PATIENCE_SECONDS)
        self.wait_for(lambda: len(models.pods()) == 2, PATIENCE_SECONDS, "no pod of others", models.pod_uids)
        self._bystanders = self._looked_at()

    def _looked_at(self) -> dict[str, tuple[str, int]]:
        """UID and restarts of each of their pods."""
        return {
            pod.metadata.name: (
                pod.metadata.uid,
                sum(one.restart_count for one in pod.status.container_statuses or ()),
            )
            for pod in Namespace(self.kube, BYSTANDERS, self.wait_for).pods()
        }

    def bystander_nodes(self) -> list[str]:
        pods = Namespace(self.kube, BYSTANDERS, self.wait_for).pods()
        return [pod.spec.node_name for pod in pods]

    def bystanders_noticed(self) -> str:
        """What is not as it was; empty when nothing is."""
        now = self._looked_at()
        return "" if now == self._bystanders else f"{self._bystanders} became {now}"

    # --- what is

    def orphans(self) -> list[str]:
        """Pods of the operator whose resource is no more."""
        custom = client.CustomObjectsApi(self.kube)
        found = custom.list_cluster_custom_object(GROUP, VERSION, PLURAL)["items"]
        living = {one["metadata"]["uid"] for one in found}
        selector = "app.kubernetes.io/managed-by=plimsoll"
        pods = client.CoreV1Api(self.kube).list_pod_for_all_namespaces(label_selector=selector).items
        return [
            f"{pod.metadata.namespace}/{pod.metadata.name}"
            for pod in pods
            if not living & {owner.uid for owner in pod.metadata.owner_references or ()}
        ]

    def writes(self) -> int:
        """Of the operator so far, without renewals of its Lease and events."""
        return sum(not re.search("/(leases|events)(/|$)", one.path) for one in self.proxy.writes)


def nodes() -> list[dict[str, Any]]:
    return expand(list(NODES))


def deployment(**more: Any) -> dict[str, Any]:
    """The spec of a model that fits any GPU; the L4 are taken unless `placement` says otherwise."""
    return {
        "model": {"huggingFace": {"repo": MODEL}},
        "workload": {"maxContextTokens": 1024},
        "placement": {"accelerators": {"products": ["NVIDIA-L4"]}},
        "rollout": {"drainSeconds": 0},
    } | more


def up(name: str) -> Cluster:
    return lifecycle.up(lifecycle.Wanted(name, nodes=nodes(), fakes=FAKES))


def is_write_in(namespace: str) -> Callable[[Request], bool]:
    """Writes of the operator to what lies in a namespace, events left out."""
    return lambda request: (
        request.is_write and f"/namespaces/{namespace}/" in request.path and "/events" not in request.path
    )


def resident_mib(operator: Operator) -> int:
    return int(psutil.Process(operator.pid).memory_info().rss >> 20)
