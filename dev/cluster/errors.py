"""What can go wrong with a development cluster.

ClusterError
├── MissingProgramError       a binary, a toolchain or a distribution package is not there
├── BuildError          `go build` failed
├── ProcessError        a process of the cluster ended, or did not become ready in time
├── ClusterNotFoundError      no cluster of that name is recorded
└── InvalidNodesError         a file of fake nodes does not read
"""

from __future__ import annotations

from pathlib import Path


class ClusterError(Exception):
    """The base: its text says what was found and what to do about it."""


class MissingProgramError(ClusterError):
    """A program that the cluster is made of cannot be found or built."""


class BuildError(ClusterError):
    """Building a program from its Go module failed."""


class ClusterNotFoundError(ClusterError):
    """No cluster of that name is recorded on this machine."""


class InvalidNodesError(ClusterError):
    """A file of fake node pools does not read; the text names file and field."""


class ProcessError(ClusterError):
    """A process of the cluster ended early or was not ready in time; carries the end of its log."""

    def __init__(self, name: str, what: str, log: Path) -> None:
        tail = (
            log.read_text(errors="replace").splitlines()[-15:] if log.exists() else ["(no log was written)"]
        )
        super().__init__(f"{name} {what}; its log is {log} and ends with:\n  " + "\n  ".join(tail))
        self.process = name
