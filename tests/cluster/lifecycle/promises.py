"""Watches the whole cluster for a GPU that is promised twice, at any moment."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from plimsoll.cluster.kube import NODES, PODS, Gone, Kube, KubeError
from plimsoll.inventory.nodes import pod_view

GPU = "nvidia.com/gpu"
WATCH_SECONDS = 2
AWAY_SECONDS = 0.2
"""Between two attempts at an API server that does not answer."""


class PromiseWatch:
    """`with PromiseWatch(kube) as promises:` follows every pod of the cluster and keeps in `violations` each
    moment at which the pods bound or pinned to a node asked for more GPUs than it has.

    `gpus` are those of each node, where no node changes; else the API server is asked at each event."""

    def __init__(self, client: Any, gpus: Mapping[str, int] | None = None) -> None:
        self._kube = Kube(client)
        self._gpus = gpus
        self._held: dict[str, tuple[str, int]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="promises")
        self.violations: list[str] = []
        self.seen = 0

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _look(self) -> None:
        pods, self._version = self._kube.list(PODS)
        self._held.clear()
        for pod in pods:
            self._count("ADDED", pod)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except Gone:
                self._look()
            except KubeError:
                # The API server is away; the watch goes on where it was.
                self._stopping.wait(AWAY_SECONDS)

    def _follow(self) -> None:
        for event in self._kube.watch(PODS, self._version, seconds=WATCH_SECONDS, silence_seconds=10):
            if event["type"] == "ERROR":
                raise Gone(str(event["object"].get("message")))
            if event["type"] != "BOOKMARK":
                self._count(event["type"], event["object"])
            self._version = event["object"]["metadata"]["resourceVersion"]

    def pod_seen(self, event: str, pod: Mapping[str, Any]) -> None:
        """Every event of every pod, for a subclass that wants more of them."""

    def _there(self, node: str) -> int:
        if self._gpus is not None:
            return self._gpus[node]
        return int(self._kube.get(NODES, None, node)["status"]["allocatable"].get(GPU, 0))

    def _count(self, event: str, pod: dict[str, Any]) -> None:
        self.pod_seen(event, pod)
        view = pod_view(pod)
        gpus = view.requests.extended.get(GPU, 0) if view else 0
        node = (view.node or view.pinned_node) if view else ""
        uid = pod["metadata"]["uid"]
        if event == "DELETED" or not (node and gpus):
            self._held.pop(uid, None)
            return
        self.seen += 1
        self._held[uid] = (node, gpus)
        held = sum(amount for where, amount in self._held.values() if where == node)
        there = self._there(node)
        if held > there:
            self.violations.append(f"{held} GPUs of {there} on {node} with pod {pod['metadata']['name']}")
