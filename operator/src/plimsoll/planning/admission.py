"""Which pools a deployment may use. Deployments that ask alike get one answer: a thousand of them share a few
ways of asking."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from plimsoll.inventory.views import NodeView
from plimsoll.planning.eligibility import NO_MATCHING_NODES, Eligibility, Obstacle
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import Pool, Supply, Wanted
from plimsoll_worker.launch import Device

Filter = Callable[[str], bool]
"""Whether a node may be used, by name."""
Refused = tuple[Sequence[NodeView], Obstacle]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The pools that a deployment may use; each has an admitted node."""

    pools: tuple[Pool, ...]
    admits: Filter | None = None
    """Told apart node by node: exclusions and volumes. None: every node of the pools."""

    def names(self) -> Iterator[str]:
        """Admitted nodes in the order of their names."""
        found = merge(*((node.name for node in pool.nodes) for pool in self.pools))
        return filter(self.admits, found) if self.admits else found

    def only(self, pools: Sequence[Pool]) -> Admitted:
        return Admitted(tuple(pools), self.admits)

    def within(self, nodes: frozenset[str]) -> Admitted:
        """Those of `nodes` that are admitted."""
        before = self.admits
        return Admitted(self.pools, lambda name: name in nodes and (before is None or before(name)))


class Admission:
    """Answers for all deployments of one snapshot."""

    def __init__(self, supply: Supply) -> None:
        self._supply = supply
        self._known: dict[Hashable, tuple[Pool, ...]] = {}

    def admitted(self, request: DeploymentRequest, eligibility: Eligibility) -> Admitted:
        key = _asks(request)
        if key not in self._known:
            wanted = Wanted(request.spec.placement)
            self._known[key] = tuple(
                pool for pool in self._pools(request) if not _refusal(pool, wanted, eligibility)
            )
        pools, admits = self._known[key], eligibility.by_node()
        if admits is not None:
            pools = tuple(pool for pool in pools if any(admits(node.name) for node in pool.nodes))
        return Admitted(pools, admits)

    def refused(self, request: DeploymentRequest, eligibility: Eligibility) -> list[Refused]:
        """Why the rest may not be used."""
        wanted = Wanted(request.spec.placement)
        found: list[Refused] = []
        for pool in self._pools(request):
            if refusal := _refusal(pool, wanted, eligibility):
                found.append((pool.nodes, refusal))
            elif eligibility.by_node() is not None:
                found += [((node,), why) for node in pool.nodes if (why := eligibility.obstacle(node))]
        return found

    def _pools(self, request: DeploymentRequest) -> tuple[Pool, ...]:
        on_gpu = request.spec.placement.device is Device.GPU
        return self._supply.gpu_pools if on_gpu else self._supply.cpu_pools


def _refusal(pool: Pool, wanted: Wanted, eligibility: Eligibility) -> Obstacle | None:
    mismatch = wanted.mismatch(pool.gpu) if pool.gpu else ""
    return Obstacle(NO_MATCHING_NODES, mismatch) if mismatch else eligibility.of_kind(pool.nodes[0])


def _asks(request: DeploymentRequest) -> Hashable:
    placement = request.spec.placement
    wished = placement.accelerators
    return (
        placement.device,
        placement.sharing,
        placement.allocation,
        tuple(sorted(placement.node_selector.items())),
        tuple((t.key, t.operator, t.value, t.effect) for t in placement.tolerations),
        tuple(wished.products),
        wished.min_memory,
        wished.min_compute_capability,
    )
