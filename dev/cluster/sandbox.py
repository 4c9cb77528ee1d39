"""The real node's world: one process in namespaces of its own, like kind's node container without an engine.

The kubelet, the container runtime and every container live in the process namespace of one holder. When the
holder ends, the kernel ends all of them, and the mounts, the bridge and the firewall rules vanish with
their namespaces. What the kernel does not remove by itself is little: the host's end of a veth, and empty
cgroup folders.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from dev.cluster.errors import ClusterError
from dev.cluster.network import Network
from dev.cluster.paths import ClusterPaths
from dev.cluster.processes import POLL_SECONDS, ProcessTable

HOLDER = "node-holder"
_CGROUPS = Path("/sys/fs/cgroup")
_DEADLINE_SECONDS = 10.0

# Kernel settings that the kubelet insists on. They are the machine's, not the namespace's, so the kubelet
# is shown files that already say what it wants, and the machine stays as it is.
_KUBELET_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


class Sandbox:
    """The namespaces of one cluster's node."""

    def __init__(self, paths: ClusterPaths, holder_pid: int) -> None:
        self.paths = paths
        self.pid = holder_pid

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` inside."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return ["nsenter", f"--target={self.pid}", *namespaces, "--", *(str(word) for word in argv)]

    def run(self, argv: Sequence[str | Path], *, stdin: bytes = b"") -> str:
        """Run a command inside to its end; its output. Raises ClusterError with what it said."""
        answer = subprocess.run(self.enter(argv), input=stdin, capture_output=True, check=False)
        if answer.returncode != 0:
            said = (answer.stderr or answer.stdout).decode(errors="replace").strip()
            raise ClusterError(
                f"in the node of {self.paths.name}: {shlex.join(map(str, argv))[:200]}: {said}"
            )
        return answer.stdout.decode()


def create(
    paths: ClusterPaths, table: ProcessTable, network: Network, node: str, keep_open: Sequence[int]
) -> Sandbox:
    """Start the holder, connect it to the host and lay out its mounts."""
    program = Path(__file__).with_name("holder.py")
    unshare = [
        "unshare",
        "--mount",
        "--uts",
        "--ipc",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    table.start(HOLDER, [*unshare, sys.executable, "-I", "-S", program], keep_open=keep_open)
    sandbox = _wait(paths, table)
    sandbox.run(["sh", "-eu", "-c", _mounts(paths, node)])
    _connect(sandbox, network)
    for controller in _controllers():
        _make_cgroup(controller / paths.tag)
    return sandbox


def find(paths: ClusterPaths) -> Sandbox | None:
    """The running sandbox of a cluster, or None."""
    record = next((process for process in ProcessTable(paths).recorded() if process.name == HOLDER), None)
    unshare = record.find() if record else None
    if unshare is None:
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in unshare.children():
            # Before it becomes Python, the child is a copy of `unshare`, and /proc is not mounted yet.
            if "-I" in child.cmdline()[:2]:
                return Sandbox(paths, child.pid)
    return None


def clear(paths: ClusterPaths) -> None:
    """Remove what outlives the namespaces; call it when every process has ended. Safe to repeat."""
    subprocess.run(["ip", "link", "delete", paths.tag], capture_output=True, check=False)
    for controller in _controllers():
        _remove_cgroup(controller / paths.tag)


def _wait(paths: ClusterPaths, table: ProcessTable) -> Sandbox:
    table.wait_ready(HOLDER, lambda: find(paths) is not None, _DEADLINE_SECONDS)
    sandbox = find(paths)
    assert sandbox is not None
    return sandbox


def _mounts(paths: ClusterPaths, node: str) -> str:
    """Folders that programs use by fixed paths become the node's own; /run is empty and in memory."""
    lines = [
        "mount --make-rshared /",  # what Kubernetes asks of a node, for mounts that propagate into containers
        f"hostname {shlex.quote(node)}",
        "mount -t tmpfs -o mode=755 tmpfs /run",
        "mkdir /run/lock",
    ]
    for source, target in (("var-lib", "/var/lib"), ("var-log", "/var/log")):
        folder = paths.node / source
        folder.mkdir(parents=True)
        lines.append(f"mount --bind {shlex.quote(str(folder))} {target}")
    lines.append("mkdir /var/lib/kubelet /var/lib/cni")
    settings = paths.node / "kernel-settings"
    for name, value in _KUBELET_SETTINGS.items():
        shown = settings / name
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.write_text(value + "\n")
        lines.append(f"mount --bind {shlex.quote(str(shown))} /proc/sys/{name}")
    return "\n".join(lines)


def _connect(sandbox: Sandbox, network: Network) -> None:
    link, pid = sandbox.paths.tag, sandbox.pid
    _batch(
        ["ip", "-batch", "-"],
        f"link add {link} type veth peer name eth0 netns {pid}",
        f"address add {network.host}/30 dev {link}",
        f"link set {link} up",
    )
    _batch(
        sandbox.enter(["ip", "-batch", "-"]),
        "link set lo up",
        f"address add {network.node}/30 dev eth0",
        "link set eth0 up",
        f"route add default via {network.host}",
        "link add cni0 type bridge",
        f"address add {network.bridge}/24 dev cni0",
        "link set cni0 up",
    )
    sandbox.run(["sh", "-eu", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    _batch(
        ["ip", "-batch", "-"],
        f"route add {network.pod_cidr} via {network.node}",
        f"route add {network.service_cidr} via {network.node}",
    )


def _batch(argv: Sequence[str], *lines: str) -> None:
    answer = subprocess.run(list(argv), input="\n".join(lines), text=True, capture_output=True, check=False)
    if answer.returncode != 0:
        raise ClusterError(f"setting up the node's network failed: {answer.stderr.strip()}")


def _controllers() -> list[Path]:
    """The roots of all cgroup trees: one with version 2, one a controller with version 1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return sorted({path.resolve() for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists()})


def _make_cgroup(path: Path) -> None:
    path.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty means that no process may enter
        if (path / name).exists() and (path.parent / name).exists():
            (path / name).write_text((path.parent / name).read_text())


def _remove_cgroup(path: Path) -> None:
    """Remove a tree of cgroups from its leaves up; one is busy for a moment after its last process ended."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while path.exists():
        for folder in sorted(
            (p for p in path.rglob("*") if p.is_dir()), key=lambda p: len(p.parts), reverse=True
        ):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            path.rmdir()
        if path.exists():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"cgroup {path} could not be removed; `cat {path}/cgroup.procs` shows who is in it"
                )
            time.sleep(POLL_SECONDS)
