"""Clusters and deployments from a seed, for an engine that runs every precision and cut.

Mixed GPU types, nodes that are partly taken, models from 1 to 123 billion parameters. Prices are relative and
assumed, for these benchmarks only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.unit.planning.builders import llama, node, pod, request

from plimsoll.inventory.views import NodeView
from plimsoll.planning.snapshot import DeploymentRequest, Snapshot
from plimsoll_worker.launch import CAPABILITIES, Capabilities

MAX_TENSOR, MAX_PIPELINE = 8, 4
ENGINE: Capabilities = CAPABILITIES.model_copy(
    update={"max_tensor_parallel": MAX_TENSOR, "max_pipeline_parallel": MAX_PIPELINE}
)


@dataclass(frozen=True)
class GPUType:
    product: str
    memory_mib: int
    capability: str
    price: int
    """Tenths of a T4."""
    sizes: tuple[int, ...]
    """GPUs of a node."""


TYPES = (
    GPUType("Tesla-T4", 15360, "7.5", 10, (1, 2, 4, 8)),
    GPUType("NVIDIA-L4", 23034, "8.9", 15, (1, 2, 4, 8)),
    GPUType("NVIDIA-A10", 22731, "8.6", 16, (1, 2, 4, 8)),
    GPUType("Tesla-V100-SXM2-32GB", 32768, "7.0", 20, (4, 8)),
    GPUType("NVIDIA-L40S", 46068, "8.9", 30, (4, 8)),
    GPUType("NVIDIA-A100-SXM4-40GB", 40536, "8.0", 40, (8,)),
    GPUType("NVIDIA-A100-SXM4-80GB", 81920, "8.0", 50, (4, 8)),
    GPUType("NVIDIA-H100-80GB-HBM3", 81559, "9.0", 80, (8,)),
    GPUType("NVIDIA-H200", 143771, "9.0", 100, (8,)),
    GPUType("NVIDIA-B200", 183359, "10.0", 160, (8,)),
)
PRICES = {kind.product: kind.price for kind in TYPES}
MODELS = tuple(
    llama(size, dtype=dtype, layers=layers)
    for size, layers in ((1, 16), (3, 28), (8, 32), (14, 40), (32, 64), (70, 80), (123, 88))
    for dtype in ("BF16", "F16")
)
WORKLOADS = (
    {"maxContextTokens": 4096, "maxConcurrentSequences": 4},
    {"maxContextTokens": 8192, "maxConcurrentSequences": 8},
    {"maxContextTokens": 32768, "maxConcurrentSequences": 8},
)
PRIORITIES = (1, 2, 5, 10)


RACK = "example.com/rack"
"""Label of the domains, where an instance has some."""


def gpu_node(name: str, kind: GPUType, gpus: int, rack: str = "") -> NodeView:
    major, minor = kind.capability.split(".")
    labels = {
        "nvidia.com/gpu.product": kind.product,
        "nvidia.com/gpu.memory": str(kind.memory_mib),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
    }
    if rack:
        labels[RACK] = rack
    return node(name, gpus=gpus, labels=labels, cpu="256", memory="4096Gi", ephemeral="64Ti", pods="250")


def instance(
    seed: int, nodes: int, deployments: int, *, priorities: bool = False, racks: int = 0
) -> Snapshot:
    """About a third of the GPUs belong to others already. With `racks` the nodes are divided over so many
    domains, and the stages of a replica must share one."""
    chance = random.Random(seed)
    kinds = chance.sample(TYPES, k=min(len(TYPES), chance.randint(4, 8)))
    made, strangers = [], []
    for index in range(nodes):
        kind = chance.choice(kinds)
        size = chance.choice(kind.sizes)
        rack = f"r{index * racks // nodes:03}" if racks else ""
        made.append(gpu_node(f"n{index:04}", kind, size, rack))
        taken = chance.choice((0, 0, chance.randint(0, size)))
        strangers.append(pod(f"s{index:04}", made[-1].name, gpus=taken))
    key = RACK if racks else ""
    asked = tuple(deployment(index, chance, key, priorities=priorities) for index in range(deployments))
    return Snapshot(tuple(made), tuple(strangers), asked, ENGINE, PRICES)


def deployment(
    index: int, chance: random.Random, topology_key: str, *, priorities: bool
) -> DeploymentRequest:
    return request(
        f"d{index:04}",
        facts=chance.choices(MODELS, weights=[5, 5, 5, 5, 6, 6, 4, 4, 3, 3, 2, 2, 1, 1])[0],
        created=f"2026-01-01T{index // 60:02}:{index % 60:02}:00Z",
        priority=chance.choice(PRIORITIES) if priorities else 1,
        replicas=chance.choice((1, 1, 1, 2, 3)),
        workload=chance.choice(WORKLOADS),
        placement={"topologyKey": topology_key},
    )
