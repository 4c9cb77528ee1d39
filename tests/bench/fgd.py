"""Fragmentation gradient descent, written from the paper (Weng et al., "Beware of Fragmentation", ATC 2023).

The fragments of a node for a task: all its free GPU parts when the task cannot run there (or asks for no
GPU), else those on GPUs that have less free than the task asks of one. A node's fragmentation is the mean
over the tasks of a typical workload. A task goes to the node, and there to the GPU, where it adds least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tests.bench.openb import MOST_GPUS, WHOLE, Nodes, Task


class Workload:
    """How often each kind of task is asked for."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        counted = Counter((task.cpu, task.gpus, task.milli) for task in tasks)
        kinds = list(counted)
        self._share = np.array([counted[kind] for kind in kinds]) / len(tasks)
        self._cpu = np.array([kind[0] for kind in kinds])
        self._gpus = np.array([kind[1] for kind in kinds])
        self._millis, self._which = np.unique([max(1, kind[2]) for kind in kinds], return_inverse=True)

    def fragmentation(self, cpu: np.ndarray, gpu: np.ndarray) -> np.ndarray:
        """Of each node, in thousandths of a GPU. cpu: (nodes,), gpu: (nodes, 8)."""
        total = gpu.sum(axis=1)
        fitting = gpu[:, :, None] >= self._millis
        count = fitting.sum(axis=1)
        scraps = total[:, None] - (gpu[:, :, None] * fitting).sum(axis=1)
        runs = (cpu[:, None] >= self._cpu) & (count[:, self._which] >= self._gpus) & (self._gpus > 0)
        return np.where(runs, scraps[:, self._which], total[:, None]) @ self._share


@dataclass
class _Known:
    """What a kind of task would add to each node, and on which GPU; `seen`: the node's version then."""

    added: np.ndarray
    gpu: np.ndarray
    seen: np.ndarray


class FGD:
    """Chooses (node, GPU). A node's answer is kept until something is placed on it."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._workload = Workload(tasks)
        self._known: dict[tuple[int, int, int], _Known] = {}
        self._version: np.ndarray | None = None

    def choose(self, task: Task, nodes: Nodes, feasible: np.ndarray) -> tuple[int, int]:
        size = len(nodes.cpu)
        if self._version is None:
            self._version = np.zeros(size, dtype=int)
        fresh = _Known(np.zeros(size), np.zeros(size, dtype=int), np.full(size, -1))
        known = self._known.setdefault((task.cpu, task.gpus, task.milli), fresh)
        stale = np.flatnonzero(feasible & (known.seen != self._version))
        if len(stale):
            known.added[stale], known.gpu[stale] = self._added(task, nodes.cpu[stale], nodes.gpu[stale])
            known.seen[stale] = self._version[stale]
        node = int(np.argmin(np.where(feasible, known.added, np.inf)))
        self._version[node] += 1
        return node, int(known.gpu[node])

    def _added(self, task: Task, cpu: np.ndarray, gpu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._workload.fragmentation(cpu, gpu)
        left = cpu - task.cpu
        if task.milli == WHOLE or not task.gpus:
            idle = gpu == WHOLE
            taken = idle & (idle.cumsum(axis=1) <= task.gpus)
            after = self._workload.fragmentation(left, np.where(taken, 0, gpu))
            return after - before, np.zeros(len(cpu), dtype=int)
        options = np.full((MOST_GPUS, len(cpu)), np.inf)
        for place in range(MOST_GPUS):
            able = np.flatnonzero(gpu[:, place] >= task.milli)
            changed = gpu[able].copy()
            changed[:, place] -= task.milli
            options[place, able] = self._workload.fragmentation(left[able], changed)
        return options.min(axis=0) - before, options.argmin(axis=0)
