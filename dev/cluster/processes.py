"""Starting, watching and ending the processes of a cluster.

Two records make `down` work after any crash: a file with pid and start time for each process, and a mark in
the environment of everything started. The file can be missing (the starter was killed between fork and
write); the mark cannot. A pid alone is never trusted: the start time or the mark must agree, so a recycled
pid is left alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dev.cluster.errors import ProcessError
from dev.cluster.paths import ClusterPaths

MARK = "PLIMSOLL_CLUSTER_STATE"
POLL_SECONDS = 0.05
_END_SECONDS = 10.0

# Those started by this very process: their end must be collected here, or they stay as zombies.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class RecordedProcess:
    """A process as its pid file tells it."""

    name: str
    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """The running process, or None when it has ended or the pid belongs to another one now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class ProcessTable:
    """The processes of one cluster."""

    def __init__(self, paths: ClusterPaths) -> None:
        self._paths = paths

    def log(self, name: str) -> Path:
        return self._paths.logs / f"{name}.log"

    def start(self, name: str, argv: Sequence[str | Path], *, keep_open: Sequence[int] = ()) -> int:
        """Start a process that outlives this one; its output goes to its log. Returns the pid.

        `keep_open` are file descriptors that the process inherits (a lock that must live as long as it does).
        """
        self._paths.pids.mkdir(parents=True, exist_ok=True)
        self._paths.logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: str(self._paths.root)},
                cwd=self._paths.root,
                pass_fds=tuple(keep_open),
                start_new_session=True,
            )
        _CHILDREN[child.pid] = child
        record = {"pid": child.pid, "started": psutil.Process(child.pid).create_time()}
        temporary = self._paths.pids / f".{name}"
        temporary.write_text(json.dumps(record))
        temporary.rename(self._paths.pids / f"{name}.json")
        return child.pid

    def recorded(self) -> list[RecordedProcess]:
        """All processes that were started, in the order of starting."""
        found = []
        for path in self._paths.pids.glob("*.json"):
            record = json.loads(path.read_text())
            found.append(RecordedProcess(path.stem, int(record["pid"]), float(record["started"])))
        return sorted(found, key=lambda process: process.started)

    def alive(self, name: str) -> bool:
        return any(p.name == name and p.find() is not None for p in self.recorded())

    def wait_ready(self, name: str, ready: Callable[[], bool], deadline_seconds: float) -> None:
        """Poll `ready` until it holds.

        Raises ProcessError when the process ends first or the deadline passes.
        """
        deadline = time.monotonic() + deadline_seconds
        while not ready():
            if not self.alive(name):
                raise ProcessError(name, "ended before it was ready", self.log(name))
            if time.monotonic() > deadline:
                raise ProcessError(name, f"was not ready after {deadline_seconds:.0f} s", self.log(name))
            time.sleep(POLL_SECONDS)

    def end_all(self) -> None:
        """End every process of the cluster, recorded or only marked, at once.

        Nobody is asked politely: what they would save goes with them, and the API server alone would take
        three seconds over its farewell.
        """
        _end([process for record in self.recorded() if (process := record.find())])
        _end(self._marked())

    def end(self, name: str) -> None:
        """End one process of the cluster."""
        _end([process for record in self.recorded() if record.name == name and (process := record.find())])

    def _marked(self) -> list[psutil.Process]:
        mine = os.getpid()
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != mine and process.environ().get(MARK) == str(self._paths.root):
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # ended meanwhile, or belongs to somebody else
        return found


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=_END_SECONDS)
    for process in processes:
        child = _CHILDREN.pop(process.pid, None)
        if child is not None:
            child.wait()
