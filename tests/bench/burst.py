"""The operator on a real control plane: `python -m tests.bench burst`.

    facts of four models ─► 500 resources at 20/s ─► more at higher rates ─► a node is lost ─► SIGKILL
                                                             └► 20,000 pods ─► start-up

1,000 fake GPU nodes, the real API server, scheduler and controllers, the operator as a process. Everything is
measured from outside: latencies by a watch, writes by the operator's metrics and the API server's, CPU and
memory by the kernel. A watch counts throughout whether a GPU was promised twice.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.cluster.description import Cluster
from kubernetes import client
from tests.bench.burst_cluster import Costs, api_client, bench_cluster, counted_writes, since
from tests.bench.burst_watch import BurstWatch
from tests.cluster.lifecycle.operator_process import Operator
from tests.unit.planning.builders import llama

from plimsoll.api.v1alpha1 import API_VERSION, KIND
from plimsoll.cluster.kube import DEPLOYMENTS, NODES, PODS, Kube, KubeError
from plimsoll.model.facts import ModelFacts

NAMESPACE = "models"
CLUSTER = "burst"
MODELS = {f"bench/llama-{size}b": llama(size, layers=layers) for size, layers in ((1, 16), (3, 28), (8, 32))}
REPLICAS = (1, 1, 1, 2)
"""Of the resources, in turn."""
POSTERS = 8
WRITES, ROUNDS = "plimsoll_api_writes_total", "plimsoll_rounds_total"
QUIET_SECONDS = 3.0
IDLE_SECONDS = 5.0
QUIET_CORES = 0.3
"""Of the control plane: leases of 1,000 nodes take 0.1."""
CONTROL_PLANE = ("apiserver", "controller-manager", "scheduler", "kwok")
STRANGE_NODES = 200
PATIENCE_SECONDS = 300.0
ASK_SECONDS = 0.5


@dataclass(frozen=True)
class Size:
    """How much is asked for."""

    nodes: int = 1000
    resources: int = 500
    rates: tuple[int, ...] = (20, 30, 40)
    """Resources a second; each rate gets a burst of its own."""
    pods: int = 20_000
    """At start-up, other people's included; 0 leaves this measurement out."""
    log: Path | None = None
    """Where the operator's log is kept."""


@dataclass
class Bench:
    """The cluster, the operator, and what looks at them."""

    cluster: Cluster
    kube: Kube
    watch: BurstWatch
    costs: Costs
    log: Path
    operator: Operator = field(init=False)
    made: int = 0
    """Resources so far."""
    idle: dict[str, float] = field(default_factory=dict)
    """Cores that each process takes when nothing happens."""

    def start_operator(self) -> float:
        """Seconds until it has seen the whole cluster and planned it once."""
        started = time.monotonic()
        self.operator = Operator(self.cluster.kubeconfig, self.log)
        self.costs.follow("operator", self.operator.pid)
        self.operator.wait_ready()
        poll(lambda: self.counted(ROUNDS, '{result="done"}'), "the first round", every=ASK_SECONDS)
        return time.monotonic() - started

    def create(self, name: str, repo: str, replicas: int) -> None:
        spec = {
            "model": {"huggingFace": {"repo": repo}},
            "workload": {"maxContextTokens": 4096, "maxConcurrentSequences": 4},
            "replicas": replicas,
        }
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
        self.watch.expect(name, replicas)
        self.kube.create(DEPLOYMENTS, NAMESPACE, body)

    def create_next(self) -> str:
        number, self.made = self.made, self.made + 1
        name = f"d{number:04}"
        self.create(name, list(MODELS)[number % len(MODELS)], REPLICAS[number % len(REPLICAS)])
        return name

    def counted(self, name: str, labels: str = "") -> float:
        """The sum of one of the operator's counters. It alone is asked for: the whole page counts every pod,
        and asked five times a second it took a quarter of the operator's CPU."""
        return self.operator.metric(f"{name}{labels}", f"/metrics?name[]={name}")

    def writes(self) -> float:
        """Of the operator so far, without the renewals of its Lease."""
        return self.counted(WRITES) - self.counted(WRITES, '{kind="leases"')

    def settle(self) -> None:
        """Until the operator has nothing more to write."""
        written, quiet_since = -1.0, time.monotonic()
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            if (now := self.writes()) != written:
                written, quiet_since = now, time.monotonic()
            time.sleep(0.2)


def poll(done: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS, every: float = 0.02) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := done()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return answer


def measure(size: Size, tell: Callable[[str], None]) -> dict[str, Any]:
    with bench_cluster(CLUSTER, size.nodes) as cluster, tempfile.TemporaryDirectory() as folder:
        # An image brings bytecode; without it a start compiles for a second.
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        api = api_client(cluster)
        client.CoreV1Api(api).create_namespace({"metadata": {"name": NAMESPACE}})
        kube = Kube(api)
        nodes, _ = kube.list(NODES)
        gpus = {
            node["metadata"]["name"]: int(node["status"]["allocatable"].get("nvidia.com/gpu", 0))
            for node in nodes
        }
        with BurstWatch(api, gpus) as watch:
            log = size.log or Path(folder) / "operator.log"
            bench = Bench(cluster, kube, watch, Costs(cluster), log)
            try:
                found = _measure(bench, api, size, tell)
            finally:
                bench.operator.kill()
        found["gpusPromisedTwice"] = len(watch.violations)
        return {"nodes": size.nodes, "gpus": sum(gpus.values())} | found


def _measure(bench: Bench, api: client.ApiClient, size: Size, tell: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {"emptyStartSeconds": round(bench.start_operator(), 1)}
    tell("operator started")
    for repo, facts in MODELS.items():
        inspect(bench, repo, facts)
    bench.settle()
    bench.costs.restart()
    time.sleep(IDLE_SECONDS)
    found["idleCores"] = bench.idle = bench.costs.cores()
    found["residentMiBEmpty"] = bench.costs.resident_mib("operator")
    found["bursts"] = []
    for rate in size.rates:
        found["bursts"].append(burst(bench, api, size.resources, rate))
        tell(f"burst at {rate}/s: {found['bursts'][-1]}")
    found["residentMiB"] = bench.costs.resident_mib("operator")
    found["nodeLoss"] = lose_nodes(bench)
    tell(f"node loss: {found['nodeLoss']}")
    found["kill"] = kill(bench)
    tell(f"SIGKILL: {found['kill']}")
    if size.pods:
        found["start"] = start_up(bench, size.pods)
        tell(f"start-up: {found['start']}")
    return found


def inspect(bench: Bench, repo: str, facts: ModelFacts) -> None:
    """Make the facts of a model known: the first resource's inspect pod, on a fake node, leaves them."""
    name = repo.rpartition("/")[2]
    bench.create(name, repo, 1)

    selector = f"app.kubernetes.io/name=plimsoll-inspect,plimsoll.dev/deployment={name}"
    [pod] = poll(
        lambda: bench.kube.list(PODS, namespace=NAMESPACE, selector=selector)[0], f"the inspect pod of {name}"
    )
    fake_end = {"plimsoll.dev/fake-exit-code": "0", "plimsoll.dev/fake-exit-message": facts.pack()}
    client.CoreV1Api(api_client(bench.cluster)).patch_namespaced_pod(
        pod["metadata"]["name"], NAMESPACE, {"metadata": {"annotations": fake_end}}
    )
    if not bench.watch.wait_all(PATIENCE_SECONDS):
        raise TimeoutError(f"{name} has no pod: {bench.operator.tail()}")


def burst(bench: Bench, api: client.ApiClient, resources: int, rate: int) -> dict[str, Any]:
    """`resources` new ones at `rate` a second."""
    bench.watch.forget()
    server, own = counted_writes(api), bench.writes()
    bench.costs.restart()
    late = 0.0
    started = time.monotonic()
    with ThreadPoolExecutor(POSTERS) as posters:
        pending = []
        for number in range(resources):
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            pending.append(posters.submit(bench.create_next))
        for created in pending:
            created.result()
        late = time.monotonic() - started - resources / rate
    cores = bench.costs.cores()
    complete = bench.watch.wait_all(PATIENCE_SECONDS)
    drained = time.monotonic() - started
    took = bench.watch.took()
    bench.settle()
    writes = bench.writes() - own
    spent = bench.costs.milliseconds_each(resources, bench.idle)
    pods = sum(REPLICAS[number % len(REPLICAS)] for number in range(bench.made - resources, bench.made))
    last = took[-len(took) // 4 :]
    return {
        "rate": rate,
        "resources": resources,
        "pods": pods,
        "complete": complete,
        "generatorLateSeconds": round(max(late, 0.0), 2),
        "p50Seconds": round(statistics.median(took), 2),
        "p99Seconds": round(quantile(took, 0.99), 2),
        "maxSeconds": round(max(took), 2),
        "lastQuarterP50Seconds": round(statistics.median(last), 2),
        "drainedSeconds": round(drained, 1),
        "cores": cores,
        "cpuMillisecondsPerResource": spent,
        "mostPerSecond": most_per_second(spent),
        "mostPerSecondOfOthers": most_per_second(spent, without="operator"),
        "writesPerResource": round((writes - pods) / resources, 2),
        "writes": int(writes),
        "writesByServer": since(server, counted_writes(api)),
    }


def most_per_second(spent: Mapping[str, float], *, without: str = "") -> float:
    """Resources a second that all processors of this machine would do, at this cost of each."""
    each = sum(milliseconds for name, milliseconds in spent.items() if name != without)
    return round(1000 * (os.cpu_count() or 1) / each, 1)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def lose_nodes(bench: Bench, times: int = 5) -> dict[str, Any]:
    """A node that is not ready may come back, so its pods keep their places. From the moment it is marked as
    lost (the taint `out-of-service`) until the plan of a resource names another node."""
    took = []
    for number in range(times):
        name = f"d{number * 7:04}"
        [lost, *_] = _places(bench, name)
        _stop_kubelet(bench, lost)
        marked = time.monotonic()
        poll(lambda: lost not in _places(bench, name), f"{name} is planned elsewhere", 60)  # noqa: B023
        took.append(time.monotonic() - marked)
    return {
        "times": times,
        "medianSeconds": round(statistics.median(took), 2),
        "maxSeconds": round(max(took), 2),
    }


def _places(bench: Bench, name: str) -> list[str]:
    """The nodes of a resource's newest plan."""
    plans = (bench.kube.get(DEPLOYMENTS, NAMESPACE, name).get("status") or {}).get("plans") or []
    return sorted({place["node"] for place in plans[-1]["placements"]}) if plans else []


def _stop_kubelet(bench: Bench, node: str) -> None:
    core = client.CoreV1Api(api_client(bench.cluster))
    core.patch_node(node, {"metadata": {"annotations": {"plimsoll.dev/fake-not-ready": ""}}})

    def not_ready() -> bool:
        conditions = bench.kube.get(NODES, None, node)["status"]["conditions"]
        return any(one["type"] == "Ready" and one["status"] != "True" for one in conditions)

    poll(not_ready, f"node {node} is not ready")
    lost = {"key": "node.kubernetes.io/out-of-service", "value": "lost", "effect": "NoExecute"}
    taints = bench.kube.get(NODES, None, node)["spec"].get("taints", [])
    core.patch_node(node, {"spec": {"taints": [*taints, lost]}})


def kill(bench: Bench) -> dict[str, Any]:
    """SIGKILL, a resource created while nobody is there, and a new operator."""
    bench.settle()
    bench.operator.kill()
    bench.watch.forget()
    bench.create_next()
    started = time.monotonic()
    planned = bench.start_operator()
    if not bench.watch.wait_all(PATIENCE_SECONDS):
        raise TimeoutError(f"no pod after the restart: {bench.operator.tail()}")
    return {
        "resources": bench.made,
        "plannedSeconds": round(planned, 1),
        "newPodBoundSeconds": round(time.monotonic() - started, 1),
        "residentMiB": bench.costs.resident_mib("operator"),
    }


def start_up(bench: Bench, pods: int) -> dict[str, Any]:
    """A restart in a cluster with `pods` pods of a usual size, most of them other people's."""
    bench.operator.kill()
    bench.costs.forget("operator")
    there = len(bench.kube.list(PODS)[0])
    with ThreadPoolExecutor(POSTERS) as posters:
        for number in range(STRANGE_NODES):
            bench.kube.create(NODES, None, _strange_node(number))
        list(posters.map(lambda number: _stranger(bench.kube, number), range(pods - there)))
    wait_quiet(bench.costs)
    seconds = bench.start_operator()
    spent = bench.costs.all_seconds()
    return {
        "resources": bench.made,
        "pods": len(bench.kube.list(PODS)[0]),
        "seconds": round(seconds, 1),
        "cpuSeconds": {name: round(own, 1) for name, own in spent.items()},
        "residentMiB": bench.costs.resident_mib("operator"),
    }


def wait_quiet(costs: Costs) -> None:
    """Until the cluster has done with what was made: it is the operator's start that is measured."""

    def quiet() -> bool:
        costs.restart()
        time.sleep(QUIET_SECONDS)
        spent = costs.all_seconds()
        return sum(spent[name] for name in CONTROL_PLANE) < QUIET_CORES * QUIET_SECONDS

    poll(quiet, "the cluster is quiet")


def _strange_node(number: int) -> dict[str, Any]:
    """Nobody plays its kubelet, so its pods stay as they are made and cost nothing; and without it they would
    be deleted as lost."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"elsewhere-{number}"}}


def _stranger(kube: Kube, number: int) -> None:
    """A pod bound to a node that nothing runs: it is there to be listed, 4 KiB of JSON, and costs no fake
    kubelet. It tolerates everything, or the controllers would take it away."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"stranger-{number}", "labels": {"app": f"app-{number % 50}"}},
        "spec": {
            "nodeName": f"elsewhere-{number % STRANGE_NODES}",
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "main",
                    "image": "registry.example/app:1",
                    "env": [{"name": f"SETTING_{index}", "value": "x" * 60} for index in range(30)],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                }
            ],
        },
    }
    try:
        kube.create(PODS, NAMESPACE, body)
    except KubeError as error:
        raise RuntimeError(f"pod {number}: {error.message}") from error


def parser() -> argparse.ArgumentParser:
    given = argparse.ArgumentParser(prog="python -m tests.bench burst")
    given.add_argument("--nodes", type=int, default=Size.nodes)
    given.add_argument("--resources", type=int, default=Size.resources, help="of each burst")
    given.add_argument("--rates", default=",".join(map(str, Size.rates)), help="resources a second, by comma")
    given.add_argument("--pods", type=int, default=Size.pods, help="at start-up; 0 leaves it out")
    given.add_argument("--log", type=Path, help="keep the operator's log here")
    return given


def asked(given: argparse.Namespace) -> Size:
    rates = tuple(int(rate) for rate in given.rates.split(","))
    return Size(given.nodes, given.resources, rates, given.pods, given.log)
