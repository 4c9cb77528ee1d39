"""A small world for the pure half of the operator: objects as JSON, one step of the lifecycle at a time.

Nothing here stands in for the API server: tests on the real one are in tests/cluster. This is the table that
`next_actions` is tested on, and a way to stop between any two of its actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from plimsoll.actuate.pods import PodDefaults
from plimsoll.cluster.decisions import LastPlan, Room, decide
from plimsoll.cluster.lifecycle import next_actions
from plimsoll.cluster.observation import Observer, Terms
from plimsoll.cluster.observed import (
    Action,
    ApplyObject,
    CreatePod,
    DeletePod,
    DeleteRevision,
    EmitEvent,
    Memory,
    Observed,
    OpenGate,
    Outcome,
    ReportAnswer,
    Timing,
    WriteRevision,
    WriteStatus,
)
from plimsoll.cluster.own_pods import stamp
from plimsoll.cluster.state import ClusterState
from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup

START = datetime(2026, 11, 23, 4, 0, 0, tzinfo=UTC)
NAMESPACE = "models"
GIB = 1 << 30
L4_MIB = 23034
TERMS = Terms(
    defaults=PodDefaults(
        operator_image="operator:1",
        image_pull_policy="IfNotPresent",
        hf_endpoint="http://hub.test",
        inspect_timeout_seconds=300,
    ),
    timing=Timing(
        inspect=timedelta(seconds=300), unschedulable=timedelta(seconds=60), exclusion=timedelta(seconds=600)
    ),
    worker_image="worker:1",
    operator_namespace="plimsoll-system",
)


def facts(*, layers: int = 4, hidden: int = 512, revision: str = "c0ffee") -> ModelFacts:
    """A llama of a few million parameters."""

    def group(role: Role, elements: int) -> TensorGroup:
        return TensorGroup(role=role, dtype="BF16", elements=elements, bytes=2 * elements)

    vocab, intermediate = 32_000, 4 * hidden
    outer = (group(Role.EMBEDDING, vocab * hidden), group(Role.NORM, hidden))
    layer = (
        group(Role.ATTENTION_Q, 2 * hidden * hidden),
        group(Role.ATTENTION_KV, 2 * hidden * hidden),
        group(Role.MLP, 3 * hidden * intermediate),
        group(Role.NORM, 2 * hidden),
    )
    parameters = sum(part.elements for part in outer) + layers * sum(part.elements for part in layer)
    return ModelFacts(
        architecture="llama",
        format="safetensors",
        revision=revision,
        parameters=parameters,
        checkpoint_bytes=2 * parameters,
        hidden=hidden,
        intermediate=intermediate,
        heads=8,
        vocab=vocab,
        max_position=4096,
        tied=True,
        outer=outer,
        layers=(LayerClass(count=layers, kv_heads=8, key_dim=64, value_dim=64, groups=layer),),
    )


def cpu_node(name: str, *, memory: str = "16Gi", ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "8", "memory": memory, "ephemeral-storage": "100Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def gpu_node(name: str, gpus: int = 1) -> dict[str, Any]:
    node = cpu_node(name, memory="256Gi")
    node["metadata"]["labels"] |= {
        "nvidia.com/gpu.product": "NVIDIA-L4",
        "nvidia.com/gpu.memory": str(L4_MIB),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.compute.major": "8",
        "nvidia.com/gpu.compute.minor": "9",
    }
    node["spec"]["taints"] = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    node["status"]["allocatable"]["nvidia.com/gpu"] = str(gpus)
    return node


HUB = {"model": {"huggingFace": {"repo": "acme/small"}}}
CLAIM = {"model": {"persistentVolumeClaim": {"claimName": "weights"}}, "placement": {"device": "CPU"}}


class World:
    """Objects by kind and name, all in one namespace, and the operator's memory."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.now = START
        self.nodes = {node["metadata"]["name"]: node for node in nodes}
        self.resources: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.budgets: dict[str, dict[str, Any]] = {}
        self.revisions: dict[str, dict[str, Any]] = {}
        self.claims: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.reports: dict[str, ReportAnswer] = {}
        self.events: list[EmitEvent] = []
        self.memories: dict[str, Memory] = {}
        self.history: list[tuple[str, Action]] = []
        self.terms = TERMS
        self._last_plan = LastPlan()
        self._serial = 0

    # --- what users and the cluster do

    def deploy(self, name: str, spec: dict[str, Any] | None = None, **more: Any) -> None:
        self.resources[name] = {
            "metadata": self._metadata(name) | {"generation": 1},
            "spec": copy.deepcopy(spec or HUB) | more,
        }

    def edit(self, name: str, **fields: Any) -> None:
        resource = self.resources[name]
        resource["spec"] |= fields
        resource["metadata"]["generation"] += 1
        resource["metadata"]["resourceVersion"] = str(self._next())

    def provide_claim(self, name: str = "weights") -> None:
        self.claims[name] = {
            "metadata": self._metadata(name),
            "spec": {"accessModes": ["ReadOnlyMany"], "volumeName": f"pv-{name}"},
            "status": {"phase": "Bound"},
        }
        self.volumes[f"pv-{name}"] = {
            "metadata": {"name": f"pv-{name}"},
            "spec": {"accessModes": ["ReadOnlyMany"]},
            "status": {"phase": "Bound"},
        }

    def end_inspection(self, name: str, message: str, *, exit_code: int = 0) -> None:
        """The inspect pod of `name` ends with a termination message."""
        pod = self.inspect_pods(name)[0]
        pod["status"] = {
            "phase": "Succeeded" if exit_code == 0 else "Failed",
            "containerStatuses": [
                {
                    "name": "inspect",
                    "state": {
                        "terminated": {
                            "reason": "Completed" if exit_code == 0 else "Error",
                            "exitCode": exit_code,
                            "message": message,
                            "finishedAt": stamp(self.now),
                        }
                    },
                }
            ],
        }

    def run_pods(self, *, revision: str = "") -> None:
        """Every pinned pod that is not gated is bound and turns ready; of one revision if it is named."""
        for pod in self.worker_pods():
            other = revision not in ("", pod["metadata"]["labels"]["plimsoll.dev/revision"])
            if "status" in pod or other or pod["spec"].get("schedulingGates"):
                continue
            terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            node = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
            pod["spec"]["nodeName"] = node
            pod["status"] = {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": stamp(self.now)},
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(self.now)},
                ],
                "containerStatuses": [
                    {"name": "worker", "ready": True, "state": {"running": {"startedAt": stamp(self.now)}}}
                ],
            }

    def annotate(self, name: str, **annotations: str) -> None:
        """Annotations plimsoll.dev/<keyword> of a resource."""
        meta = self.resources[name]["metadata"]
        told = {f"plimsoll.dev/{key}": value for key, value in annotations.items()}
        meta["annotations"] = meta.get("annotations", {}) | told
        meta["resourceVersion"] = str(self._next())

    def crash(self, pod: dict[str, Any], message: str = "", *, restarts: int = 1) -> None:
        """The container of `pod` ended with `message` and waits to be restarted in place."""
        pod["status"]["conditions"] = [
            {"type": "Ready", "status": "False", "lastTransitionTime": stamp(self.now)},
            {"type": "PodScheduled", "status": "True"},
        ]
        ended = {"reason": "Error", "exitCode": 1, "message": message, "finishedAt": stamp(self.now)}
        pod["status"]["containerStatuses"] = [
            {
                "name": "worker",
                "ready": False,
                "restartCount": restarts,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                "lastState": {"terminated": ended},
            }
        ]

    def terminate(self, pod: dict[str, Any]) -> None:
        pod["metadata"]["deletionTimestamp"] = stamp(self.now)

    def stamp(self) -> str:
        """Now, as Kubernetes writes it."""
        return stamp(self.now)

    def silence(self, name: str) -> None:
        """The kubelet of a node is not heard of any more."""
        [ready] = self.nodes[name]["status"]["conditions"]
        ready |= {"status": "Unknown", "lastTransitionTime": stamp(self.now)}
        ready["message"] = "Kubelet stopped posting node status."

    def pass_time(self, **amount: int) -> None:
        self.now += timedelta(**amount)

    # --- what the operator does

    def observe(self, name: str) -> Observed:
        return next(one for one in self._observed() if one.resource.owner.name == name)

    def _observed(self) -> list[Observed]:
        state = ClusterState(on_change=lambda: None)
        for view, objects in (
            (state.nodes, self.nodes),
            (state.pods, self.pods),
            (state.claims, self.claims),
            (state.volumes, self.volumes),
            (state.services, self.services),
            (state.budgets, self.budgets),
            (state.revisions, self.revisions),
            (state.resources, self.resources),
        ):
            view.replace(copy.deepcopy(list(objects.values())))
        snapshot = state.snapshot()
        observer = Observer(snapshot, {}, self.reports, self.terms, self.now)
        observed = [
            observer.observe(resource, self.memories.get(resource.uid, Memory()))
            for _, resource in sorted(snapshot.resources.items())
        ]
        room = Room(snapshot.nodes, observer.pods, snapshot.priorities)
        courses = decide(observed, room, self._last_plan)
        return [replace(one, course=courses.get(one.resource.uid)) for one in observed]

    def outcome(self, name: str) -> Outcome:
        return next_actions(self.observe(name))

    def step(self, *, stop_after: int | None = None) -> int:
        """One round over all resources. `stop_after`: only so many actions, as if the operator were killed
        then. Returns how many actions there were."""
        done = 0
        for one in self._observed():
            outcome = next_actions(one)
            name = one.resource.owner.name
            self.memories[one.resource.uid] = outcome.memory
            for action in outcome.actions:
                if stop_after is not None and done >= stop_after:
                    return done
                self._carry_out(name, one, action)
                done += 1
        return done

    def settle(self, rounds: int = 20) -> None:
        """Rounds until nothing is left to do."""
        for _ in range(rounds):
            if self.step() == 0:
                return
        raise AssertionError(f"not settled after {rounds} rounds: {self.history[-5:]}")

    def restart(self) -> None:
        """A new operator process: memory is gone."""
        self.memories = {}
        self._last_plan = LastPlan()

    def serve(self, name: str, spec: dict[str, Any] | None = None, **more: Any) -> None:
        """Deploy and bring to Ready."""
        self.deploy(name, spec, **more)
        self.settle()
        if self.inspect_pods(name):
            self.end_inspection(name, facts().pack())
        self.settle()
        self.run_pods()
        self.settle()

    # --- what one looks at

    def status(self, name: str) -> dict[str, Any]:
        return self.resources[name].get("status", {})

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        return next(entry for entry in self.status(name)["conditions"] if entry["type"] == kind)

    def _pods(self, component: str, name: str | None) -> list[dict[str, Any]]:
        def wanted(pod: dict[str, Any]) -> bool:
            labels = pod["metadata"].get("labels", {})
            mine = name is None or labels.get("plimsoll.dev/deployment") == name
            return mine and labels.get("app.kubernetes.io/name") == component

        return [pod for pod in self.pods.values() if wanted(pod)]

    def worker_pods(self, name: str | None = None) -> list[dict[str, Any]]:
        return self._pods("plimsoll-worker", name)

    def inspect_pods(self, name: str | None = None) -> list[dict[str, Any]]:
        return self._pods("plimsoll-inspect", name)

    def gpus_promised(self) -> dict[str, int]:
        """GPUs asked for by pods that have not ended, by the node they are pinned to."""
        promised: dict[str, int] = {}
        for pod in self.worker_pods():
            if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                continue
            terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            node = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
            asked = pod["spec"]["containers"][0]["resources"]["requests"].get("nvidia.com/gpu", "0")
            promised[node] = promised.get(node, 0) + int(asked)
        return promised

    # --- inside

    def _carry_out(self, name: str, observed: Observed, action: Action) -> None:
        self.history.append((name, action))
        match action:
            case WriteRevision(revision):
                self.revisions.setdefault(revision.name, copy.deepcopy(revision.to_object()))
            case DeleteRevision(revision_name):
                self.revisions.pop(revision_name, None)
            case WriteStatus(status):
                resource = self.resources[name]
                assert resource["metadata"]["resourceVersion"] == observed.resource.resource_version
                resource["status"] = status.to_dict()
                resource["metadata"]["resourceVersion"] = str(self._next())
            case CreatePod(body):
                body = copy.deepcopy(dict(body))
                if body["metadata"]["name"] not in self.pods:
                    body["metadata"] |= self._metadata(body["metadata"]["name"])
                    self.pods[body["metadata"]["name"]] = body
            case DeletePod(pod_name, uid):
                if self.pods.get(pod_name, {}).get("metadata", {}).get("uid") == uid:
                    del self.pods[pod_name]
            case OpenGate(pod_name, uid):
                if self.pods.get(pod_name, {}).get("metadata", {}).get("uid") == uid:
                    self.pods[pod_name]["spec"].pop("schedulingGates", None)
            case ApplyObject(body):
                kept = self.services if body["kind"] == "Service" else self.budgets
                kept[body["metadata"]["name"]] = copy.deepcopy(dict(body))
            case EmitEvent():
                self.events.append(action)

    def _metadata(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}-{self._next()}",
            "resourceVersion": str(self._serial),
            "creationTimestamp": stamp(self.now),
        }

    def _next(self) -> int:
        self._serial += 1
        return self._serial


def kinds(actions: Iterable[Action]) -> list[str]:
    """Names of the actions, events left out."""
    return [type(action).__name__ for action in actions if not isinstance(action, EmitEvent)]


Change = Callable[[World], None]
