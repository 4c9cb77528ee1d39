"""What a burst looks like from the API: when each resource had all its pods bound, and no GPU given twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from tests.cluster.lifecycle.promises import PromiseWatch

from plimsoll.actuate.ownership import DEPLOYMENT, NAME, WORKER


class BurstWatch(PromiseWatch):
    """Follows every pod of the cluster. Times are seconds of this process's monotonic clock, taken when the
    event arrives: those in the objects are whole seconds."""

    def __init__(self, client: Any, gpus: Mapping[str, int]) -> None:
        self._bound: dict[str, dict[str, float]] = {}
        self._created: dict[str, float] = {}
        self._replicas: dict[str, int] = {}
        self._changed = threading.Condition()
        super().__init__(client, gpus)

    def expect(self, name: str, replicas: int) -> None:
        """A resource is about to be created, now."""
        self._created[name], self._replicas[name] = time.monotonic(), replicas

    def pod_seen(self, event: str, pod: Mapping[str, Any]) -> None:
        labels = pod["metadata"].get("labels") or {}
        if event != "DELETED" and labels.get(NAME) == WORKER and pod["spec"].get("nodeName"):
            with self._changed:
                bound = self._bound.setdefault(labels[DEPLOYMENT], {})
                bound.setdefault(pod["metadata"]["uid"], time.monotonic())
                self._changed.notify_all()

    def missing(self) -> list[str]:
        """Resources that do not have all their pods bound."""
        return [name for name, asked in self._replicas.items() if len(self._bound.get(name, ())) < asked]

    def wait_all(self, seconds: float) -> bool:
        """Whether every expected resource has all its pods bound within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.missing(), seconds)

    def took(self) -> list[float]:
        """Seconds from creation to the last pod's binding, in the order of creation; of the finished ones."""
        waiting = set(self.missing())
        return [
            max(self._bound[name].values()) - created
            for name, created in self._created.items()
            if name not in waiting
        ]

    def forget(self) -> None:
        """Begin another burst."""
        self._created, self._replicas = {}, {}
