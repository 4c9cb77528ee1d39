"""How long a plan takes as the cluster grows: `python -m tests.bench.speed [NODES ...]` prints JSON.

Every cluster is made from a fixed seed: nodes of 8 GPUs of three kinds, each with a stranger's pod, and a
running deployment of one replica for every fifth node. Measured is `plan` alone, over views that are already
there, as in the operator: wall time, and the time of this process, which other work on the machine stretches
less. The cluster's objects are set aside from garbage collection, as the operator does it.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from dataclasses import replace

from tests.bench.instances import instance
from tests.unit.planning.builders import H100, L4, T4, gpu_node, llama, pod, request, snapshot

from plimsoll import garbage
from plimsoll.planning.plan import plan, worker_requests
from plimsoll.planning.snapshot import Snapshot

SEED = 7
ROUNDS = 100
SIZES = (100, 300, 1000, 3000, 5000, 10_000)
MODEL = llama(8)
MIXED = 1000
"""New deployments of many models on many kinds of GPU, which have more to decide together."""


def empty(nodes: int) -> Snapshot:
    """`nodes` nodes with strangers' pods, and a new deployment for every fifth."""
    chance = random.Random(SEED)
    made = [gpu_node(f"n{index:05}", chance.choice([H100, H100, L4, T4])) for index in range(nodes)]
    strangers = [pod(f"s{index}", node.name, gpus=chance.randint(0, 4)) for index, node in enumerate(made)]
    asked = [request(f"d{index:05}", facts=MODEL) for index in range(nodes // 5)]
    return snapshot(made, *asked, pods=strangers)


def running(world: Snapshot) -> Snapshot:
    """The same when everything that was planned runs."""
    decisions = plan(world)
    pods, deployments = list(world.pods), []
    for one in world.deployments:
        decided = decisions[one.uid].plan
        assert decided is not None, "the benchmark's cluster has room for all its deployments"
        held = worker_requests(decided, one.spec, one.facts)
        deployments.append(replace(one, current=decided))
        pods += [
            replace(pod(f"{one.name}-{place.replica}", place.node, owner=one.uid), requests=held)
            for place in decided.placements
        ]
    return replace(world, pods=tuple(pods), deployments=tuple(deployments))


def timed(world: Snapshot, rounds: int) -> dict[str, float]:
    wall, own = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        plan(world)
        wall.append((time.perf_counter() - start) * 1000)
        own.append((time.process_time() - used) * 1000)
    told = {}
    for name, taken in (("wall", sorted(wall)), ("process", sorted(own))):
        told[f"{name}MedianMilliseconds"] = round(taken[len(taken) // 2], 1)
        told[f"{name}P99Milliseconds"] = round(taken[min(len(taken) - 1, len(taken) * 99 // 100)], 1)
    return told


def measure(nodes: int, rounds: int = ROUNDS) -> dict[str, object]:
    burst = empty(nodes)
    settled = running(burst)
    garbage.collect_and_set_aside()
    newcomer = request("new", facts=MODEL)
    hopeless = request("big", facts=llama(405, layers=126))
    return {
        "nodes": nodes,
        "gpus": 8 * nodes,
        "runningDeployments": nodes // 5,
        "oneNew": timed(replace(settled, deployments=(*settled.deployments, newcomer)), rounds),
        "oneRejected": timed(replace(settled, deployments=(*settled.deployments, hopeless)), rounds),
        "allNew": timed(burst, 3),
    }


def run(sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS) -> dict[str, object]:
    garbage.collect_seldom()
    started = time.perf_counter()
    rows = [measure(nodes, rounds) for nodes in sizes]
    mixed = [
        {"nodes": nodes, "newDeployments": MIXED, **timed(instance(SEED, nodes, MIXED), 3)}
        for nodes in (1000, 5000)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = round(time.perf_counter() - started)
    return {
        "seed": SEED,
        "rounds": rounds,
        "rows": rows,
        "mixedModels": mixed,
        "peakMemoryMiB": peak,
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(tuple(map(int, sys.argv[1:])) or SIZES), indent=1) + "\n")
