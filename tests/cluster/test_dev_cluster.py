"""The development cluster itself: it leaves nothing behind, and it schedules and runs pods as a real one
does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from dev.cluster import lifecycle, node
from dev.cluster.binaries import binary
from dev.cluster.errors import ClusterError, InvalidNodesError, MissingProgramError, ProcessError
from dev.cluster.nodes import DEMO, NodePool, cycle, expand, load_pools
from dev.cluster.paths import ClusterPaths
from dev.cluster.processes import MARK, ProcessTable
from kubernetes import client
from tests.conftest import SLACK

pytestmark = pytest.mark.cluster

GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def gpu_pod(*, gpus: int, tolerations: list[dict[str, Any]]) -> dict[str, Any]:
    container = {"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    return {"metadata": {"name": "p"}, "spec": {"containers": [container], "tolerations": tolerations}}


def l4(nodes: int = 1) -> NodePool:
    return NodePool("tdc-l4", "NVIDIA-L4", nodes, 1, 23034, "8.9", "16", "64Gi")


def condition(pod: Any, kind: str) -> Any:
    return next((found for found in pod.status.conditions or [] if found.type == kind), None)


def test_a_fake_pod_runs_on_loopback_and_is_deleted_with_its_grace(
    kube: Any, namespace: str, fake_nodes: Callable[..., list[str]], wait_for: Callable[..., Any]
) -> None:
    [node] = fake_nodes(l4())
    core = client.CoreV1Api(kube)
    core.create_namespaced_pod(namespace, gpu_pod(gpus=1, tolerations=[GPU_TOLERATION]))

    def ready() -> Any:
        pod = core.read_namespaced_pod("p", namespace)
        found = condition(pod, "Ready")
        return pod if found and found.status == "True" else None

    pod = wait_for(ready, 15, "the fake pod is ready", lambda: core.read_namespaced_pod("p", namespace))
    assert pod.spec.node_name == node
    assert pod.status.pod_ip.startswith("127.64.")
    core.delete_namespaced_pod("p", namespace)
    wait_for(lambda: not core.list_namespaced_pod(namespace).items, 15, "the fake pod is gone")


def test_a_gpu_pod_without_the_toleration_stays_pending(
    kube: Any, namespace: str, fake_nodes: Callable[..., list[str]], wait_for: Callable[..., Any]
) -> None:
    fake_nodes(l4())
    core = client.CoreV1Api(kube)
    core.create_namespaced_pod(namespace, gpu_pod(gpus=1, tolerations=[]))

    def refused() -> Any:
        found = condition(core.read_namespaced_pod("p", namespace), "PodScheduled")
        return found if found and found.reason == "Unschedulable" else None

    found = wait_for(refused, 15, "the scheduler gives its reason")
    assert "untolerated taint" in found.message


def test_a_node_marked_not_ready_stops_being_ready(
    kube: Any, fake_nodes: Callable[..., list[str]], wait_for: Callable[..., Any]
) -> None:
    [name] = fake_nodes(l4())
    core = client.CoreV1Api(kube)
    core.patch_node(name, {"metadata": {"annotations": {"plimsoll.dev/fake-not-ready": "yes"}}})

    def status() -> str:
        return next(c.status for c in core.read_node(name).status.conditions if c.type == "Ready")

    wait_for(lambda: status() == "False", 20, "the node is not ready")


@pytest.mark.parametrize(("policy", "phase", "restarts"), [("Never", "Failed", 0), ("Always", "Running", 1)])
def test_a_fake_pod_ends_as_its_annotations_say(
    policy: str,
    phase: str,
    restarts: int,
    kube: Any,
    namespace: str,
    fake_nodes: Callable[..., list[str]],
    wait_for: Callable[..., Any],
) -> None:
    fake_nodes(l4())
    core = client.CoreV1Api(kube)
    body = gpu_pod(gpus=1, tolerations=[GPU_TOLERATION])
    body["spec"]["restartPolicy"] = policy
    core.create_namespaced_pod(namespace, body)

    def pod() -> Any:
        return core.read_namespaced_pod("p", namespace)

    wait_for(lambda: pod().status.phase == "Running", 15, "the fake pod runs", pod)
    message = {"plimsoll.dev/fake-exit-code": "3", "plimsoll.dev/fake-exit-message": '{"reason": "X"}'}
    core.patch_namespaced_pod("p", namespace, {"metadata": {"annotations": message}})

    def ended() -> Any:
        [status] = pod().status.container_statuses
        return status.state.terminated or (status.last_state and status.last_state.terminated)

    found = wait_for(ended, 15, "the fake pod ended", pod)
    assert (found.exit_code, found.message) == (3, '{"reason": "X"}')
    [status] = pod().status.container_statuses
    assert (pod().status.phase, status.restart_count, status.ready) == (phase, restarts, False)


def test_the_demo_has_forty_nodes_of_four_types() -> None:
    nodes = expand(load_pools(DEMO))
    products = {node["metadata"]["labels"]["nvidia.com/gpu.product"] for node in nodes}
    assert (len(nodes), len(products)) == (40, 4)
    assert len({node["metadata"]["name"] for node in nodes}) == 40
    assert [node["metadata"]["name"] for node in cycle(5)] == ["l4-0", "a100-0", "h100-0", "h200-0", "l4-1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("nodes: 3", "expected a mapping with a list `pools`", id="not-pools"),
        pytest.param("pools: [{nam: x}]", "pools[0].nam: no such field", id="unknown-field"),
        pytest.param("pools: [{name: 3}]", "pools[0].name: expected str, found 3", id="wrong-type"),
        pytest.param("pools: [{name: x}]", "missing", id="incomplete"),
        pytest.param("pools: [", "does not read", id="not-yaml"),
    ],
)
def test_a_wrong_file_of_nodes_is_refused_by_field(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(InvalidNodesError) as caught:
        load_pools(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_bad_cluster_name_is_refused() -> None:
    with pytest.raises(ClusterError, match="lower-case letters"):
        ClusterPaths("No Such")


def test_a_program_is_looked_up_as_envtest_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets, single = tmp_path / "assets", tmp_path / "my-etcd"
    assets.mkdir()
    for path in (assets / "etcd", assets / "kube-apiserver", single):
        path.touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    monkeypatch.setenv("TEST_ASSET_ETCD", str(single))
    assert binary("etcd") == single
    assert binary("kube-apiserver") == assets / "kube-apiserver"


def test_a_program_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ASSET_ETCD", str(tmp_path / "gone"))
    with pytest.raises(MissingProgramError, match=r"TEST_ASSET_ETCD names .*gone"):
        binary("etcd")
    with pytest.raises(MissingProgramError, match="no program 'minikube' is known; known are coredns, etcd"):
        binary("minikube")


def test_an_ended_process_is_named_with_the_end_of_its_log() -> None:
    table = ProcessTable(ClusterPaths(f"test-{os.getpid()}-table"))
    try:
        table.start("talker", [sys.executable, "-c", "raise SystemExit('port 1 is taken')"])
        with pytest.raises(
            ProcessError, match=r"(?s)talker ended before it was ready; .*talker.log.*port 1 is taken"
        ):
            table.wait_ready("talker", lambda: False, 20 * SLACK)
    finally:
        lifecycle.down(f"test-{os.getpid()}-table")


def test_a_recycled_pid_is_left_alone() -> None:
    paths = ClusterPaths(f"test-{os.getpid()}-recycled")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        try:
            paths.pids.mkdir(parents=True)
            record = {"pid": stranger.pid, "started": psutil.Process(stranger.pid).create_time() - 60}
            (paths.pids / "etcd.json").write_text(json.dumps(record))
            lifecycle.down(paths.name)
            assert stranger.poll() is None
        finally:
            stranger.communicate(b"\n")
    assert stranger.returncode == 0


def traces(name: str) -> dict[str, object]:
    """What a cluster of that name has on this machine: processes, and every kind of kernel object by its
    name.
    """
    paths = ClusterPaths(name)
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(paths.root):
                processes.append(process.name())
        except (psutil.Error, OSError):
            continue
    found: dict[str, object] = {"processes": processes, "files": paths.root.exists()}
    if sys.platform == "linux":
        found["mounts"] = [
            line for line in Path("/proc/mounts").read_text().splitlines() if str(paths.root) in line
        ]
        found["cgroups"] = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{paths.tag}")]
        links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
        found["links"] = [link["ifname"] for link in links if link["ifname"] == paths.tag]
        routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, check=True).stdout)
        found["routes"] = [route for route in routes if route.get("dev") == paths.tag]
    return found


def nothing() -> dict[str, object]:
    linux = {"mounts": [], "cgroups": [], "links": [], "routes": []} if sys.platform == "linux" else {}
    return {"processes": [], "files": False, **linux}


def machine() -> dict[str, object]:
    """What a kubelet or a proxy could change of the machine itself: kernel settings and firewall rules."""
    if not node.possible():
        return {}
    settings = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return {
        "settings": [Path("/proc/sys", name).read_text() for name in (*settings, "net/ipv4/ip_forward")],
        "rules": [line for line in rules.splitlines() if line.startswith("-A")],
    }


def up_in_a_process(name: str) -> subprocess.Popen[bytes]:
    real = ["--real-node"] if node.possible() else []
    command = [
        sys.executable,
        "-m",
        "dev.cluster",
        "up",
        "--name",
        name,
        "--nodes",
        "2",
        "--provider",
        "process",
        *real,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_down_leaves_nothing_behind_and_may_be_repeated() -> None:
    name = f"test-{os.getpid()}-down"
    before = machine()
    with up_in_a_process(name) as up:
        assert up.wait(120 * SLACK) == 0
    try:
        assert traces(name) != nothing()
        assert all(lifecycle.running(name).values())
        assert machine() == before
    finally:
        assert lifecycle.down(name)
    assert traces(name) == nothing()
    assert not lifecycle.down(name)


@pytest.mark.parametrize("process", ["node-holder", "etcd", "kube-apiserver", "kwok", "kubelet"])
def test_down_clears_what_a_killed_up_left(process: str, wait_for: Callable[..., Any]) -> None:
    """`up` is killed the moment that a process of it exists; `down` finds everything all the same."""
    if process in ("node-holder", "kubelet") and not node.possible():
        process = "etcd"  # without a real node, these are the first and last that there are
    name = f"test-{os.getpid()}-crash"
    with up_in_a_process(name) as up:
        wait_for((ClusterPaths(name).pids / f"{process}.json").exists, 60, f"{process} is started")
        up.send_signal(signal.SIGKILL)
    assert traces(name) != nothing()
    lifecycle.down(name)
    assert traces(name) == nothing()


def test_an_interrupted_up_clears_up_after_itself(wait_for: Callable[..., Any]) -> None:
    name = f"test-{os.getpid()}-interrupt"
    with up_in_a_process(name) as up:
        wait_for((ClusterPaths(name).pids / "etcd.json").exists, 60, "etcd is started")
        up.send_signal(signal.SIGTERM)
        assert up.wait(30 * SLACK) == 130
    found = traces(name)
    lifecycle.down(name)  # the logs are kept for whoever wants to know; they go now
    assert {**found, "files": False} == nothing()
