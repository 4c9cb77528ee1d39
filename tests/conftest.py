"""One real cluster for the whole test run, and what every test that talks to it needs.

A machine that cannot run a tier (no root, no Linux) does not skip it quietly: the run names the tier and
fails, unless PLIMSOLL_ALLOW_MISSING_TIERS says that this is known.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

# Triton decides when it is first imported, by whomever, whether its kernels are compiled or interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Halves of a test run share the cores. Threads that wait for each other at every product, each for a core,
# took more than twice as long as one thread does; workers under test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import pytest
import yaml
from dev.cluster import binaries, kind, lifecycle, node
from dev.cluster.description import Cluster, load
from dev.cluster.paths import cluster_names

T = TypeVar("T")
POLL_SECONDS = 0.1
SLACK = 5
"""So many times longer than on a quiet machine may anything take: tests judge what happens, not how fast."""
ALLOW_MISSING = "PLIMSOLL_ALLOW_MISSING_TIERS"
USE_RUNNING = "PLIMSOLL_TEST_CLUSTER"

_MISSING = pytest.StashKey[dict[str, str]]()
_FAILED = pytest.StashKey[bool]()


@functools.cache
def has_real_node() -> bool:
    """Whether this machine can run a kubelet, by itself or in a container."""
    return node.possible() or kind.engine_answers()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MISSING] = {}
    # A terminated run must end its cluster too; pytest does that for Ctrl-C, so make both the same.
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is missing before the first test: on a new machine it takes longer than any test may."""
    needed = any("cluster" in getattr(item, "fixturenames", ()) for item in session.items)
    if needed and not session.config.option.collectonly and not os.environ.get(USE_RUNNING):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            binaries.build_all()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("node") and not has_real_node():
        reason = "needs a real kubelet: root on Linux"
        item.config.stash[_MISSING]["node"] = reason
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for tier, reason in config.stash[_MISSING].items():
        terminalreporter.write_line(
            f"TIER NOT RUN: {tier} ({reason}); {ALLOW_MISSING}=1 accepts that", red=True
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.stash[_MISSING] and not os.environ.get(ALLOW_MISSING) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc]
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real cluster: API server, scheduler, controllers, kwok, and where this machine can, a real node."""
    given = os.environ.get(USE_RUNNING)
    if given:
        yield load(given)
        return
    _clear_orphans()
    name = f"test-{os.getpid()}"
    try:
        yield lifecycle.up(
            lifecycle.Wanted(name, real_node=has_real_node()), lambda line: print(line, file=sys.__stderr__)
        )
    finally:
        lifecycle.down(name)


def _clear_orphans() -> None:
    """End the clusters of test runs that were killed before they could."""
    for name in cluster_names():
        run = re.fullmatch(r"test-(\d+)(-.*)?", name)
        if run and not psutil.pid_exists(int(run[1])):
            lifecycle.down(name)


@pytest.fixture(scope="session")
def kube(cluster: Cluster) -> Iterator[Any]:
    """A `kubernetes.client.ApiClient` with an administrator's rights."""
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)
    with client.ApiClient(settings) as api:
        yield api


@pytest.fixture(scope="session")
def dynamic(kube: Any) -> Any:
    """A `kubernetes.dynamic.DynamicClient`: any kind, custom resources included."""
    from kubernetes.dynamic import DynamicClient

    return DynamicClient(kube)


@pytest.fixture
def namespace(request: pytest.FixtureRequest, kube: Any) -> Iterator[str]:
    """A namespace of the test's own, ready for pods; a failed test prints what was in it."""
    from kubernetes import client

    core = client.CoreV1Api(kube)
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{stem}-{time.time_ns() % 10**9:x}"
    core.create_namespace({"metadata": {"name": name}})
    _wait_for(
        lambda: core.list_namespaced_service_account(name, field_selector="metadata.name=default").items,
        20,
        f"the service account of namespace {name}",
    )
    try:
        yield name
        if request.node.stash.get(_FAILED, False):
            print(_contents(kube, name))
    finally:
        # The next test may want the node's CPU: no pod gets its usual half minute to end.
        core.delete_collection_namespaced_pod(name, grace_period_seconds=1)
        core.delete_namespace(name, propagation_policy="Background")


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """`wait_for(fn, usual_seconds, what, show=None)`: poll until `fn` answers something true; return that.

    `usual_seconds`: what it takes at most on a machine with nothing else to do; a busy one gets more. `what`
    finishes the sentence "not after N s: ..."; `show` is called on time-out, and the objects that it answers
    are shown as YAML.
    """
    return _wait_for


def _wait_for(
    fn: Callable[[], T], usual_seconds: float, what: str, show: Callable[[], object] | None = None
) -> T:
    patience = usual_seconds * SLACK
    deadline = time.monotonic() + patience
    while True:
        answer = fn()
        if answer:
            return answer
        if time.monotonic() > deadline:
            found = "" if show is None else "\n" + yaml.safe_dump(_plain(show()))
            pytest.fail(f"not after {patience:g} s: {what}{found}")
        time.sleep(POLL_SECONDS)


def _plain(found: object) -> object:
    """Objects of the `kubernetes` package as what YAML can write."""
    from kubernetes import client

    if hasattr(found, "to_dict") and not hasattr(found, "openapi_types"):  # of the dynamic client
        return found.to_dict()
    return client.ApiClient().sanitize_for_serialization(found)


def _contents(kube: Any, namespace: str) -> str:
    """The objects and events of a namespace, as YAML."""
    from kubernetes import client

    core = client.CoreV1Api(kube)
    lists = [
        core.list_namespaced_pod(namespace),
        core.list_namespaced_service(namespace),
        core.list_namespaced_persistent_volume_claim(namespace),
        core.list_namespaced_event(namespace),
    ]
    with contextlib.suppress(client.ApiException):  # a cluster without our CRD has none
        custom = client.CustomObjectsApi(kube)
        lists.insert(
            0, custom.list_namespaced_custom_object("plimsoll.dev", "v1alpha1", namespace, "llmdeployments")
        )
    return yaml.safe_dump_all(kube.sanitize_for_serialization(found) for found in lists)
