"""The openb trace of a production GPU cluster (Alibaba gpu-v2023): nodes, pods, and workloads drawn of them.

Nothing of it is committed. Its files (openb_node_list_gpu_node.csv, openb_pod_list_*.csv) are in the
repository hkust-adsl/kubernetes-scheduler-simulator on GitHub, folder data/csv, licence Apache-2.0; the paper
is Weng et al., "Beware of Fragmentation", USENIX ATC 2023.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WHOLE = 1000
"""Thousandths of one GPU."""
MOST_GPUS = 8


@dataclass(frozen=True)
class Task:
    """What a pod asks for."""

    cpu: int
    """Millicores."""
    memory: int
    """MiB."""
    gpus: int
    milli: int
    """Of each GPU; less than WHOLE only for one shared GPU."""

    @property
    def gpu_total(self) -> int:
        return self.gpus * self.milli

    @property
    def whole(self) -> bool:
        return self.gpus > 0 and self.milli == WHOLE


@dataclass
class Nodes:
    """Free amounts, a row a node."""

    cpu: np.ndarray
    memory: np.ndarray
    gpu: np.ndarray
    """Thousandths free of each GPU; 0 where there is none."""
    capacity: np.ndarray
    """GPUs of each node."""

    @classmethod
    def read(cls, folder: Path) -> Nodes:
        with (folder / "openb_node_list_gpu_node.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        gpus = np.array([int(row["gpu"]) for row in rows])
        return cls(
            cpu=np.array([int(row["cpu_milli"]) for row in rows]),
            memory=np.array([int(row["memory_mib"]) for row in rows]),
            gpu=np.where(np.arange(MOST_GPUS) < gpus[:, None], WHOLE, 0),
            capacity=gpus,
        )

    def copy(self) -> Nodes:
        return Nodes(self.cpu.copy(), self.memory.copy(), self.gpu.copy(), self.capacity)


def read_tasks(folder: Path, trace: str, *, whole_only: bool) -> list[Task]:
    with (folder / f"openb_pod_list_{trace}.csv").open(encoding="utf-8") as file:
        tasks = [
            Task(int(row["cpu_milli"]), int(row["memory_mib"]), int(row["num_gpu"]), int(row["gpu_milli"]))
            for row in csv.DictReader(file)
        ]
    return [task for task in tasks if task.whole] if whole_only else tasks


def arrivals(tasks: list[Task], nodes: Nodes, ratio: float, seed: int) -> list[Task]:
    """Tasks drawn with replacement until they ask for `ratio` of the cluster's GPUs."""
    chance = random.Random(seed)
    enough = ratio * int(nodes.capacity.sum()) * WHOLE
    found: list[Task] = []
    asked = 0
    while asked < enough:
        found.append(chance.choice(tasks))
        asked += found[-1].gpu_total
    return found
