"""Up and down: the order in which a cluster comes to life, and how nothing of it stays behind.

`up` writes down what it is about to make before it makes it; `down` reads that and needs nothing else, so
it works after a crash at any point.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from dev.cluster import control_plane, kind, node, sandbox
from dev.cluster.api import ApiServer
from dev.cluster.binaries import binary
from dev.cluster.description import Cluster, load
from dev.cluster.errors import ClusterError
from dev.cluster.paths import ClusterPaths
from dev.cluster.processes import ProcessTable

Tell = Callable[[str], None]
_NODES_SECONDS = 120.0
_PORT_ATTEMPTS = 3


@dataclass(frozen=True)
class Wanted:
    """What `up` is asked for."""

    name: str = "plimsoll"
    nodes: list[dict[str, Any]] = field(default_factory=list)
    real_node: bool = False
    pod_groups: bool = False
    provider: Literal["auto", "kind", "process"] = "auto"
    fakes: control_plane.Fakes = field(default_factory=control_plane.Fakes)


def _quiet(_: str) -> None:
    """The default of `tell`: tests need no progress lines."""


def up(wanted: Wanted, tell: Tell = _quiet) -> Cluster:
    """Bring a cluster up, or find it up already. What a crashed `up` left behind is cleared first.

    Raises a ClusterError; whatever had been started is gone again then.
    """
    paths = ClusterPaths(wanted.name)
    with _lock(paths):
        running = _running(wanted)
        if running is not None:
            tell(f"cluster {wanted.name} is up already")
            _create_nodes(ApiServer(running.kubeconfig), wanted.nodes)
            return running
        if paths.description.is_file():
            tell(f"cluster {wanted.name} was left half alive; it is cleared away and made anew")
        started = time.monotonic()
        cluster = _up_from_nothing(wanted, tell)
        tell(f"cluster {cluster.name} is up after {time.monotonic() - started:.1f} s")
        return cluster


def _up_from_nothing(wanted: Wanted, tell: Tell) -> Cluster:
    paths = ClusterPaths(wanted.name)
    attempt = 0
    while True:
        attempt += 1
        _clear(paths)
        try:
            cluster = _up_kind(wanted) if _uses_kind(wanted) else _up_processes(wanted, tell)
            cluster = replace(cluster, ready=True)
            cluster.save()
            return cluster
        except BaseException as error:  # Ctrl-C too: half a cluster is of no use to anybody
            _clear(paths, keep_logs=True)
            # Ports are found by asking for a free one; between that and its use, anybody may take it.
            if attempt < _PORT_ATTEMPTS and "address already in use" in str(error):
                continue
            raise


def down(name: str) -> bool:
    """End a cluster and remove all of it; False when there was none. Safe to repeat."""
    paths = ClusterPaths(name)
    with _lock(paths):
        existed = paths.root.exists()
        _clear(paths)
    return existed


def running(name: str) -> dict[str, bool]:
    """Whether each process of a recorded cluster runs. Raises ClusterNotFoundError."""
    load(name)
    return {
        process.name: process.find() is not None for process in ProcessTable(ClusterPaths(name)).recorded()
    }


@contextmanager
def _lock(paths: ClusterPaths) -> Iterator[None]:
    """One `up` or `down` of a name at a time. The lock's file goes when the cluster has gone."""
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with paths.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock, paths.lock):  # whoever held it before removed it
                continue
            try:
                yield
            finally:
                if not paths.root.exists():
                    paths.lock.unlink()
            return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _running(wanted: Wanted) -> Cluster | None:
    paths = ClusterPaths(wanted.name)
    if not paths.description.is_file():
        return None
    cluster = load(wanted.name)
    processes = running(wanted.name)
    essential = (*control_plane.PROCESSES, *node.PROCESSES)
    ended = [name for name, alive in processes.items() if name in essential and not alive]
    if not cluster.ready or ended or not ApiServer(cluster.kubeconfig).ready():
        return None
    if wanted.real_node and cluster.node is None:
        raise ClusterError(
            f"cluster {wanted.name} is up without a real node; `down` it first or take another --name"
        )
    if wanted.pod_groups and not cluster.pod_groups:
        raise ClusterError(
            f"cluster {wanted.name} is up without PodGroups; `down` it first or take another --name"
        )
    return cluster


def _uses_kind(wanted: Wanted) -> bool:
    return wanted.provider == "kind" or (wanted.provider == "auto" and kind.engine_answers())


def _up_kind(wanted: Wanted) -> Cluster:
    cluster = Cluster(wanted.name, "kind", wanted.pod_groups, node=kind.node_name(wanted.name))
    cluster.save()
    cluster = kind.create(cluster)
    table = ProcessTable(cluster.paths)
    api = ApiServer(cluster.kubeconfig)
    control_plane.start_kwok(table, cluster.kubeconfig, wanted.fakes)
    _create_nodes(api, wanted.nodes)
    _wait_schedulable(api, table, wanted.nodes)
    return cluster


def _up_processes(wanted: Wanted, tell: Tell) -> Cluster:
    started = time.monotonic()
    for program in control_plane.PROCESSES:
        binary(program)
    paths = ClusterPaths(wanted.name)
    table = ProcessTable(paths)
    cluster = Cluster(wanted.name, pod_groups=wanted.pod_groups)
    cluster.save()
    if wanted.real_node:
        cluster = node.prepare(cluster, table)
    addresses = _addresses(cluster)
    control_plane.write_identities(paths, addresses, cluster.node)
    with ThreadPoolExecutor() as pool:
        runtime = pool.submit(node.start_runtime, cluster, table) if wanted.real_node else None
        api = control_plane.start(paths, table, addresses, wanted.fakes, pod_groups=wanted.pod_groups)
        tell(f"control plane ready after {time.monotonic() - started:.1f} s")
        fakes = pool.submit(_create_nodes, api, wanted.nodes)
        if runtime is not None:
            runtime.result()
            node.start(cluster, table, api)
            tell(f"node {cluster.node} ready after {time.monotonic() - started:.1f} s")
        fakes.result()
        _wait_schedulable(api, table, wanted.nodes)
    return cluster


def _addresses(cluster: Cluster) -> control_plane.Addresses:
    port = control_plane.free_port()
    if cluster.network is None:
        return control_plane.Addresses("127.0.0.1", "10.96.0.0/20", "10.96.0.1", port)
    network = cluster.network
    return control_plane.Addresses(network.host, network.service_cidr, network.first_service, port)


def _create_nodes(api: ApiServer, nodes: list[dict[str, Any]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda body: api.create("/api/v1/nodes", body), nodes))


def _wait_schedulable(api: ApiServer, table: ProcessTable, nodes: list[dict[str, Any]]) -> None:
    names = [body["metadata"]["name"] for body in nodes]
    table.wait_ready("kwok", lambda: _schedulable(api, names), _NODES_SECONDS)


def _schedulable(api: ApiServer, names: list[str]) -> bool:
    """Whether the controllers have taken the taint of a new node off each of them."""
    waiting = set(names)
    for found in api.get("/api/v1/nodes")["items"] if waiting else []:
        keys = {taint["key"] for taint in found["spec"].get("taints", [])}
        if "node.kubernetes.io/not-ready" not in keys and found["status"].get("addresses"):
            waiting.discard(found["metadata"]["name"])
    return not waiting


def _clear(paths: ClusterPaths, *, keep_logs: bool = False) -> None:
    """End every process, then remove every file; last the description, so that `down` can begin again."""
    ProcessTable(paths).end_all()
    if paths.description.is_file() and load(paths.name).provider == "kind":
        kind.delete(paths)
    if sys.platform == "linux" and os.geteuid() == 0:
        sandbox.clear(paths)
    if not paths.root.exists():
        return
    for entry in paths.root.iterdir():
        if entry == paths.description or (keep_logs and entry == paths.logs):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    paths.description.unlink(missing_ok=True)
    if not keep_logs:
        paths.root.rmdir()
