"""The Debian packages of a real node: installed when this is Debian and root asks, named otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dev.cluster.errors import MissingProgramError

# What is looked for, and the package that has it.
_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
}
_PROGRAMS |= {"nsenter": "util-linux", "unshare": "util-linux"}
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def ensure() -> None:
    """Raises MissingProgramError naming what is missing where it cannot be installed."""
    missing = _missing()
    if not missing:
        return
    words = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise MissingProgramError(f"the real node needs (by their Debian names) {words}; install them")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"installing {words} with apt-get", file=sys.stderr, flush=True)
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-qy", "--no-install-recommends", *missing],
    ):
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if answer.returncode != 0:
            raise MissingProgramError(f"{' '.join(command)} failed: {answer.stderr.strip()[-500:]}")
    if left := _missing():
        raise MissingProgramError(f"apt-get installed {words}, and yet {' '.join(left)} cannot be found")


def cni_plugins() -> Path:
    """The folder of the CNI plugins."""
    return next(folder for folder in _CNI_FOLDERS if (folder / "bridge").exists())


def _missing() -> list[str]:
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if not any((folder / "bridge").exists() for folder in _CNI_FOLDERS):
        missing.add("containernetworking-plugins")
    return sorted(missing)
