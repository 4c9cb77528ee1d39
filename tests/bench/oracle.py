"""The proven optimum of a plan, by a mixed-integer program without a variable per node.

Counting lemma: when tensor-parallel sizes form a divisibility chain (1, 2, 4, 8) and GPUs are the only scarce
resource of a kind of node, stages fit on nodes with f free GPUs each if and only if for every size s the sum
of floor(f / s) x s is at least the GPUs of all stages of size s or more. So one row for each kind and size
replaces all nodes; where stages must share a domain, one for each kind, domain and size, and a variable says
in which domain a replica lies. Solver: HiGHS through SciPy.

Weights first, then cost, in two solves; each is the optimum within `GAP`, or `proven` is false and the bound
is the solver's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from tests.bench.instances import ENGINE, MAX_PIPELINE, PRICES

from plimsoll.inventory.capacity import free_by_node
from plimsoll.inventory.gpu_class import GPUClass
from plimsoll.planning.formats import formats
from plimsoll.planning.options import workload, workloads
from plimsoll.planning.snapshot import DeploymentRequest, Snapshot
from plimsoll.planning.support import unsupported
from plimsoll.sizing.footprint import footprint
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll.sizing.runtime import line
from plimsoll_worker.launch import Device

SIZES = (8, 4, 2, 1)
GAP = 1e-6
TIME_LIMIT = 60.0


@dataclass(frozen=True)
class Choice:
    """One way to run a deployment on one kind of GPU."""

    product: str
    tensor: int
    pipeline: int

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    @property
    def cost(self) -> int:
        return self.gpus * PRICES[self.product]


@dataclass(frozen=True)
class Optimum:
    weight: float
    """An upper bound on the weight of what can be admitted."""
    cost: float
    """A lower bound on the cost of admitting that much."""
    proven: bool


@dataclass(frozen=True)
class Column:
    """How many replicas of the deployment `index` make `choice` in `domain`: a variable."""

    index: int
    choice: Choice
    domain: str


class Choices:
    """What could run a deployment: every cut on every kind of GPU, enumerated without the planner."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._kinds: dict[str, tuple[GPUClass, int]] = {}
        for node in snapshot.nodes:
            (gpu,) = node.gpus
            widest = max(gpu.total, self._kinds.get(gpu.product, (gpu, 0))[1])
            self._kinds[gpu.product] = (gpu, widest)
        self._known: dict[object, tuple[Choice, ...]] = {}

    def of(self, request: DeploymentRequest) -> tuple[Choice, ...]:
        key = (id(request.facts), request.spec.quantization, workload(request.spec, request.facts))
        if key not in self._known:
            self._known[key] = tuple(self._enumerate(request))
        return self._known[key]

    def cheapest_gpus(self, request: DeploymentRequest) -> int:
        """GPUs of the cheapest choice, 0 where there is none."""
        return min(((choice.cost, choice.gpus) for choice in self.of(request)), default=(0, 0))[1]

    def _enumerate(self, request: DeploymentRequest) -> list[Choice]:
        found: list[Choice] = []
        spec, facts = request.spec, request.facts
        for kept, tensor, pipeline in itertools.product(
            formats(spec, facts), reversed(SIZES), range(1, MAX_PIPELINE + 1)
        ):
            config = kept.configuration(Device.GPU, tensor, pipeline)
            try:
                needed = min(footprint(facts, config, load).worst.total for load in workloads(spec, facts))
            except ParallelRefused:
                continue
            for name, (gpu, widest) in self._kinds.items():
                able = not unsupported(ENGINE, facts, kept, config, gpu.compute_capability)
                choice = Choice(name, tensor, pipeline)
                if able and widest >= tensor and line(gpu.memory_bytes, 3) >= needed and choice not in found:
                    found.append(choice)
        return [
            one
            for one in found
            if not any(
                other != one
                and other.product == one.product
                and other.tensor <= one.tensor
                and other.gpus <= one.gpus
                for other in found
            )
        ]


def slots(snapshot: Snapshot) -> dict[tuple[str, str, int], int]:
    """GPUs in slots of each size, by product and domain: the right side of the counting rows. Instances
    without domains have the one domain that is called nothing; in others it holds the nodes without a label.
    """
    keys = {request.spec.placement.topology_key for request in snapshot.deployments}
    assert len(keys) == 1, "all deployments of an instance have the same topology key, or none"
    (key,) = keys
    free = free_by_node(snapshot.nodes, snapshot.pods)
    found: dict[tuple[str, str, int], int] = {}
    for node in snapshot.nodes:
        (gpu,) = node.gpus
        there = max(0, free[node.name].extended[gpu.resource_name])
        for size in SIZES:
            row = gpu.product, node.labels.get(key, ""), size
            found[row] = found.get(row, 0) + there // size * size
    return found


def optimum(snapshot: Snapshot, choices: Choices) -> Optimum:
    """Most weight, then least cost. Weight of a replica: priority x GPUs of its cheapest choice. All replicas
    of a deployment make the same choice, as plans do; each lies in one domain."""
    asked = [request for request in snapshot.deployments if choices.of(request)]
    right = slots(snapshot)
    columns = list(_columns(asked, choices, right))
    replicas = np.array([asked[column.index].spec.replicas for column in columns], dtype=float)
    weights = np.array(
        [asked[one.index].priority * choices.cheapest_gpus(asked[one.index]) for one in columns], dtype=float
    )
    costs = np.array([column.choice.cost for column in columns], dtype=float)
    rows = _counting(columns, right) + _one_choice(columns, replicas)
    best = _solve(-weights, rows, replicas)
    admitted = {column: weight for column, weight in enumerate(weights) if weight}
    enough = _Row(admitted, np.ceil(-best.bound - 1e-4), np.inf)
    cheapest = _solve(costs, [*rows, enough] if best.proven else rows, replicas)
    return Optimum(-best.bound, cheapest.bound, best.proven and cheapest.proven)


def _columns(
    asked: Sequence[DeploymentRequest], choices: Choices, right: Mapping[tuple[str, str, int], int]
) -> Iterator[Column]:
    domains: dict[str, set[str]] = {}
    for product, domain, _ in right:
        domains.setdefault(product, set()).add(domain)
    for index, request in enumerate(asked):
        anywhere = not request.spec.placement.topology_key
        for choice in choices.of(request):
            for domain in sorted(domains[choice.product]):
                if domain or anywhere or choice.pipeline == 1:
                    yield Column(index, choice, domain)


@dataclass(frozen=True)
class _Row:
    coefficients: Mapping[int, float]
    """By column: first how many replicas make each choice, then whether any does."""
    least: float
    most: float


@dataclass(frozen=True)
class _Bound:
    bound: float
    proven: bool


def _counting(columns: Sequence[Column], right: Mapping[tuple[str, str, int], int]) -> list[_Row]:
    """By kind and domain first: few columns are looked at for each row."""
    there: dict[tuple[str, str], list[tuple[int, Choice]]] = {}
    for number, column in enumerate(columns):
        there.setdefault((column.choice.product, column.domain), []).append((number, column.choice))
    return [
        _Row(
            {number: one.gpus for number, one in there.get((product, domain), ()) if one.tensor >= size},
            0,
            limit,
        )
        for (product, domain, size), limit in right.items()
    ]


def _one_choice(columns: Sequence[Column], replicas: np.ndarray) -> list[_Row]:
    """As many replicas as there are only for the choice that is made, and one choice a deployment. Whether a
    choice is made stands in the column after those of replicas that belongs to its first domain."""
    width = len(columns)
    made: dict[tuple[int, Choice], dict[int, float]] = {}
    for number, column in enumerate(columns):
        made.setdefault((column.index, column.choice), {})[number] = 1
    rows: list[_Row] = []
    chosen: dict[int, dict[int, float]] = {}
    for (index, _), placed in made.items():
        first = min(placed)
        chosen.setdefault(index, {})[width + first] = 1
        rows.append(_Row({**placed, width + first: -replicas[first]}, -np.inf, 0))
    return rows + [_Row(row, 0, 1) for row in chosen.values()]


def _solve(objective: np.ndarray, rows: Sequence[_Row], replicas: np.ndarray) -> _Bound:
    """Minimise `objective` over how many replicas make each choice."""
    width = 2 * len(replicas)
    filled = [
        (index, column, value) for index, row in enumerate(rows) for column, value in row.coefficients.items()
    ]
    lines, places, values = (list(part) for part in zip(*filled, strict=True))
    matrix = csr_array((values, (lines, places)), shape=(len(rows), width))
    result = milp(
        np.concatenate([objective, np.zeros(len(replicas))]),
        constraints=LinearConstraint(matrix, [row.least for row in rows], [row.most for row in rows]),
        bounds=Bounds(np.zeros(width), np.concatenate([replicas, np.ones(len(replicas))])),
        integrality=np.ones(width),
        options={"time_limit": TIME_LIMIT, "mip_rel_gap": GAP},
    )
    bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    return _Bound(bound, result.status == 0)
