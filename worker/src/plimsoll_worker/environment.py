"""Fits the process to its container before anything heavy is imported: cache folders it may write, threads it
may use.

torch starts one thread per core it sees, and a container sees every core of its node: with a quota of 2 on a
64-core node, 64 threads fight for 2 cores and a token takes many times as long. The root file system is
read-only, so every library that likes to write under $HOME is pointed at /tmp.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from plimsoll_worker.progress import say

CACHE_FOLDERS = {
    "HF_HOME": "/tmp/huggingface",  # noqa: S108 - the pod's own emptyDir
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor",  # noqa: S108
    "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108
    "CUDA_CACHE_PATH": "/tmp/cuda",  # noqa: S108
}
CACHE_MANAGER_ENV, CACHE_MANAGER = "TRITON_CACHE_MANAGER", "plimsoll_worker.kernels.shipped:ShippedKernels"
"""Kernels compiled with the image are found beside those in TRITON_CACHE_DIR."""

THREADS_ENV = "OMP_NUM_THREADS"

SPIN_ENV, SPIN_COUNT = "GOMP_SPINCOUNT", "10000"
"""How long OpenMP's threads turn idly at a barrier before they sleep. Its default is made for a machine of
one's own: beside other work each barrier may wait for a time slice. SmolLM2-135M, FP32, 2 shared cores
(Intel Xeon, 2026-11-23), seconds a token: default 0.04 to 0.70, 10000 0.04 to 0.16, never spinning
(OMP_WAIT_POLICY=PASSIVE) 0.07 to 0.14."""

CGROUP = Path("/sys/fs/cgroup")


NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""Sums in NVLink's switches: a program that fails in one may leave every GPU of the host out of service."""


def prepare(processes: int = 1) -> None:
    """Set cache folders that are unset and the number of threads, of which `processes` alike get a part each.
    Call before torch is imported."""
    os.environ.update(NO_MULTICAST)
    for name, folder in CACHE_FOLDERS.items():
        os.environ.setdefault(name, folder)
    os.environ.setdefault(CACHE_MANAGER_ENV, CACHE_MANAGER)
    threads, why = cpu_threads(os.environ, CGROUP, len(os.sched_getaffinity(0)))
    threads = max(1, threads // processes)
    os.environ[THREADS_ENV] = str(threads)
    os.environ.setdefault(SPIN_ENV, SPIN_COUNT)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    say("Environment", threads=threads, because=why)


def cpu_threads(environ: Mapping[str, str], cgroup: Path, cores: int) -> tuple[int, str]:
    """Compute threads for this container, and what decided it.

    OMP_NUM_THREADS wins (a pod sets it from its CPU request through the downward API); then the cgroup's CPU
    quota, which is the container's limit; then the cores this process may run on.
    """
    asked = environ.get(THREADS_ENV, "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked), THREADS_ENV
    quota = cpu_quota(cgroup)
    if quota is not None and quota < cores:
        return max(1, math.ceil(quota)), "cgroup CPU quota"
    return cores, "CPU affinity"


def cpu_quota(cgroup: Path) -> float | None:
    """Cores the cgroup may use (v2 `cpu.max`, v1 `cpu.cfs_quota_us`); None: unlimited."""
    v2 = cgroup / "cpu.max"
    if v2.exists():
        quota, period = v2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    v1 = cgroup / "cpu" / "cpu.cfs_quota_us"
    if v1.exists() and (quota_us := int(v1.read_text())) > 0:
        return quota_us / int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    return None


def memory_limit(cgroup: Path, machine_bytes: int) -> int:
    """Bytes of RAM this container may use: the cgroup's limit, or the machine's memory where there is
    none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = cgroup / name
        if file.exists() and (text := file.read_text().strip()) != "max":
            return min(int(text), machine_bytes)
    return machine_bytes
