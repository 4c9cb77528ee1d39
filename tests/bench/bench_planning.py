"""How long a plan takes as the cluster grows: `python -m tests.bench.bench_planning [NODES ...]` prints JSON.

Every cluster is made from a fixed seed: nodes of 8 GPUs of three kinds, each with a stranger's pod, and
running deployments of one replica each. Measured is `plan` alone, over views that are already there, as in
the operator.
"""

from __future__ import annotations

import json
import platform
import random
import resource
import statistics
import sys
import time
from dataclasses import replace

from tests.unit.planning.builders import H100, L4, T4, gpu_node, llama, pod, request, snapshot

from plimsoll.planning.plan import plan, worker_requests
from plimsoll.planning.snapshot import Snapshot

SEED = 7
ROUNDS = 11
SIZES = (100, 1000, 5000)
MODEL = llama(8)


def cluster(nodes: int, deployments: int) -> Snapshot:
    """`nodes` nodes and `deployments` deployments that already run."""
    random.seed(SEED)
    made = [gpu_node(f"n{index:05}", random.choice([H100, H100, L4, T4])) for index in range(nodes)]
    strangers = [pod(f"s{index}", node.name, gpus=random.randint(0, 4)) for index, node in enumerate(made)]
    asked = [request(f"d{index:05}", facts=MODEL) for index in range(deployments)]
    decisions = plan(snapshot(made, *asked, pods=strangers))
    running = []
    for index, one in enumerate(asked):
        decided = decisions[one.uid].plan
        assert decided is not None, "the benchmark's cluster has room for all its deployments"
        held = worker_requests(decided, one.spec, one.facts)
        asked[index] = replace(one, current=decided)
        running += [
            replace(pod(f"{one.name}-{place.replica}", place.node, owner=one.uid), requests=held)
            for place in decided.placements
        ]
    return snapshot(made, *asked, pods=[*strangers, *running])


def milliseconds(world: Snapshot) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        plan(world)
        taken.append((time.perf_counter() - start) * 1000)
    return sorted(taken)


def measure(nodes: int) -> dict[str, object]:
    deployments = nodes // 5
    start = time.perf_counter()
    world = cluster(nodes, deployments)
    burst = time.perf_counter() - start
    newcomer = request("new", facts=MODEL)
    one_new = milliseconds(replace(world, deployments=(*world.deployments, newcomer)))
    alone = milliseconds(replace(world, deployments=(newcomer,)))
    hopeless = milliseconds(replace(world, deployments=(request("big", facts=llama(405, layers=126)),)))
    return {
        "nodes": nodes,
        "gpus": 8 * nodes,
        "runningDeployments": deployments,
        "oneNewAlone": summary(alone),
        "oneNewBesideAllRunning": summary(one_new),
        "oneRejected": summary(hopeless),
        "allNewAtOnceSeconds": round(burst, 2),
    }


def summary(taken: list[float]) -> dict[str, float]:
    return {"medianMilliseconds": round(statistics.median(taken), 1), "maxMilliseconds": round(taken[-1], 1)}


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or SIZES
    results = [measure(nodes) for nodes in sizes]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    answer = {"seed": SEED, "rounds": ROUNDS, "machine": machine, "peakMemoryMiB": peak, "results": results}
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()
