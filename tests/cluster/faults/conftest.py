"""The fixture that every fault goes through: what must hold in all of them is asserted here, once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dev.cluster import lifecycle
from dev.cluster.description import Cluster
from kubernetes import client
from tests.cluster.api_proxy import ApiProxy
from tests.cluster.faults import ground as grounds
from tests.cluster.faults.ground import BYSTANDERS, PATIENCE_SECONDS, Ground, Watch
from tests.cluster.faults.workers import Workers
from tests.cluster.lifecycle.conftest import Namespace, installed
from tests.cluster.lifecycle.operator_process import ROUNDS, Operator
from tests.cluster.thorough import THOROUGH, first_of
from tests.conftest import _clear_orphans, _wait_for

from plimsoll.api.v1alpha1 import GROUP, PLURAL, VERSION
from plimsoll.api.v1alpha1.profile import PROFILE_PLURAL

SEEDS = range(int(os.environ.get("PLIMSOLL_FAULT_SEEDS", "1")))
QUIET_SECONDS, QUIET_ROUNDS = 1.5, 2
"""Longer than a fake pod takes from one state to the next, and rounds of planning, without a write and with
none that waits: the operator has nothing more to do."""

__all__ = ["THOROUGH", "first_of", "installed"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A control plane of the suite's own, without a real node."""
    _clear_orphans()
    name = f"test-{os.getpid()}-faults"
    try:
        yield grounds.up(name)
    finally:
        lifecycle.down(name)


@pytest.fixture(scope="session")
def kube(cluster: Cluster) -> Iterator[Any]:
    from kubernetes import config

    settings = client.Configuration()
    config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)
    with client.ApiClient(settings) as api:
        yield api


@pytest.fixture(scope="session")
def ground(
    cluster: Cluster, kube: Any, installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    folder: Path = tmp_path_factory.mktemp("faults")
    client.CoreV1Api(kube).create_namespace({"metadata": {"name": BYSTANDERS}})
    with (
        Workers() as workers,
        ApiProxy(cluster.kubeconfig, folder) as proxy,
        Watch(kube, workers) as watch,
    ):
        proxy.amend = watch.born
        found = Ground(cluster, kube, proxy, watch, workers, folder / "operator.log", _wait_for)
        try:
            found.settle_bystanders()
            yield found
        finally:
            found.end()


@dataclass
class Scene:
    """One fault: a namespace for it, and the ground."""

    ground: Ground
    models: Namespace

    @property
    def operator(self) -> Operator:
        return self.ground.operator

    def wait(self, holds: Any, what: str, show: Any = None) -> Any:
        return _wait_for(holds, PATIENCE_SECONDS, what, show)

    def serve(self, name: str = "small", **more: Any) -> None:
        """A deployment that is ready."""
        self.models.apply(name, grounds.deployment(**more))
        self.ready(name)

    def ready(self, name: str = "small") -> None:
        self.models.wait_ready(name, seconds=PATIENCE_SECONDS)

    def told(self, name: str, kind: str, status: str, reason: str = "") -> dict[str, Any]:
        return self.models.wait_condition(name, kind, status, reason, seconds=PATIENCE_SECONDS)

    def profiles(self) -> list[dict[str, Any]]:
        """MemoryProfiles of the namespace."""
        custom = client.CustomObjectsApi(self.ground.kube)
        found = custom.list_namespaced_custom_object(GROUP, VERSION, self.models.name, PROFILE_PLURAL)
        kept: list[dict[str, Any]] = found["items"]
        return kept

    def quiet(self) -> None:
        """The operator has nothing more to write."""
        written, since, begun = -1, 0.0, 0.0

        def holds() -> bool:
            nonlocal written, since, begun
            rounds, waits = self.operator.metric(ROUNDS), self.operator.metric("plimsoll_writes_waiting")
            if (now := self.ground.writes()) != written or waits or rounds < begun:
                written, since, begun = now, time.monotonic(), rounds
            # The round that was under way may have looked before the last write.
            return rounds > begun + QUIET_ROUNDS and time.monotonic() - since >= QUIET_SECONDS

        self.wait(holds, "the operator has nothing more to write", self.operator.tail)

    def check(self) -> None:
        """What holds after every fault, and held all the time."""
        self.wait(self.operator.ready, "the operator is ready", self.operator.tail)
        self.quiet()
        self.wait(lambda: not self.ground.orphans(), "no pod is orphaned", self.ground.orphans)
        assert self.ground.watch.seen
        assert self.ground.watch.violations == [], "GPUs were promised twice"
        assert self.ground.bystanders_noticed() == ""


@pytest.fixture
def scene(ground: Ground, namespace: str) -> Iterator[Scene]:
    """Where a fault happens. After the test: the operator runs and has nothing more to do, no pod is
    an orphan, no GPU was promised twice at any time, and the pods of others are the same."""
    ground.operator  # noqa: B018
    found = Scene(ground, Namespace(ground.kube, namespace, _wait_for))
    try:
        yield found
        found.check()
    finally:
        ground.proxy.tripwire, ground.proxy.status = None, lambda _request: 0
        ground.proxy.delay_seconds = 0.0
        ground.workers.answers.clear()
        ground.watch.fates.clear()
        ground.watch.violations.clear()
        ground.proxy.writes.clear()
        custom = client.CustomObjectsApi(ground.kube)
        custom.delete_collection_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL)
        _wait_for(
            lambda: not found.models.leftovers(), PATIENCE_SECONDS, "nothing is left", found.models.leftovers
        )
