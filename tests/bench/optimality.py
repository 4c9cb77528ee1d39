"""How far plans are from the proven optimum: `python -m tests.bench.optimality [SEEDS]` prints JSON.

Two families of seeded instances: uncontended, where everything fits and cost counts, and contended, where
about a third more is asked than there is, and what counts is the admitted weight (priority x GPUs of the
cheapest choice). Both once more where the stages of a replica must share a domain of nodes. Instances of the
first family where the optimum itself leaves something out are told apart, not dropped: they count as
contended.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass

from tests.bench.instances import PRICES, instance
from tests.bench.oracle import Choices, optimum

from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decisions, Snapshot

UNCONTENDED = ((20, 12), (50, 30), (100, 60), (300, 180), (1000, 600))
CONTENDED = ((20, 80), (50, 200), (100, 300), (300, 600))
WITH_DOMAINS = ((50, 30, 5, False), (100, 60, 10, False), (20, 80, 2, True), (50, 200, 5, True))
"""Nodes, deployments, domains that the stages of a replica must share, whether priorities differ."""
SEEDS = 6


@dataclass(frozen=True)
class Result:
    nodes: int
    deployments: int
    seed: int
    cost: int
    weight: int
    least_cost: float
    most_weight: float
    asked_weight: int
    proven: bool
    seconds: float

    @property
    def contended(self) -> bool:
        return self.most_weight < self.asked_weight - 0.5

    @property
    def cost_above(self) -> float:
        """Percent above the optimum; only where as much was admitted."""
        return 100 * (self.cost / self.least_cost - 1)

    @property
    def weight_share(self) -> float:
        return 100 * self.weight / self.most_weight


def measure(nodes: int, deployments: int, seed: int, *, priorities: bool, racks: int = 0) -> Result:
    snapshot = instance(seed, nodes, deployments, priorities=priorities, racks=racks)
    started = time.perf_counter()
    decisions = plan(snapshot)
    seconds = time.perf_counter() - started
    choices = Choices(snapshot)
    best = optimum(snapshot, choices)
    cost, weight, asked = _achieved(snapshot, decisions, choices)
    return Result(nodes, deployments, seed, cost, weight, best.cost, best.weight, asked, best.proven, seconds)


def _achieved(snapshot: Snapshot, decisions: Decisions, choices: Choices) -> tuple[int, int, int]:
    cost = weight = asked = 0
    for request in snapshot.deployments:
        worth = request.priority * choices.cheapest_gpus(request)
        asked += request.spec.replicas * worth
        decided = decisions[request.uid].plan
        if decided is None:
            continue
        replicas = len({placement.replica for placement in decided.placements})
        weight += replicas * worth
        cost += sum(placement.gpus for placement in decided.placements) * PRICES[decided.product]
    return cost, weight, asked


def run(seeds: int = SEEDS) -> dict[str, object]:
    results = [
        measure(nodes, deployments, 1000 * index + seed, priorities=priorities)
        for priorities, sizes in ((False, UNCONTENDED), (True, CONTENDED))
        for index, (nodes, deployments) in enumerate(sizes)
        for seed in range(seeds)
    ]
    together = [
        measure(nodes, deployments, 1000 * index + seed, priorities=priorities, racks=racks)
        for index, (nodes, deployments, racks, priorities) in enumerate(WITH_DOMAINS)
        for seed in range(seeds)
    ]
    return {**_told(results), "withDomains": _told(together)}


def _told(results: list[Result]) -> dict[str, object]:
    free = [one for one in results if not one.contended]
    tight = [one for one in results if one.contended]
    lost = [one for one in free if one.weight < one.asked_weight]
    above = [one.cost_above for one in free if one not in lost]
    shares = [one.weight_share for one in tight]
    return {
        "instances": len(results),
        "proven": sum(one.proven for one in results),
        "uncontended": {
            "instances": len(free),
            "notAllAdmitted": len(lost),
            "costAboveOptimumPercent": _spread(above),
        },
        "contended": {
            "instances": len(tight),
            "weightPercentOfOptimum": _spread(shares),
        },
        "slowestPlanSeconds": round(max(one.seconds for one in results), 2),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.mean(values), 3),
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*map(int, sys.argv[1:])), indent=1) + "\n")
