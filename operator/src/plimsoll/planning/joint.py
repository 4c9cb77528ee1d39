"""From several new deployments to the option that each should take: the counting side of a plan.

Only deployments without anything in their way but GPUs are decided together; those with exclusions or a
volume that is bound to nodes, and those on CPU, find their place afterwards, one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from plimsoll.planning.assignment import Demand, Way, assign
from plimsoll.planning.decide import World
from plimsoll.planning.eligibility import Eligibility, single_node
from plimsoll.planning.options import Option
from plimsoll.planning.placement import SLOTS
from plimsoll.planning.rejections import not_possible
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import Pool
from plimsoll.planning.topology import key_of, whole_replicas
from plimsoll_worker.launch import Device

SIZES = (*SLOTS, 1)


def options_together(
    requests: Sequence[DeploymentRequest],
    missing: Mapping[str, int],
    eligibilities: Mapping[str, Eligibility],
    world: World,
) -> dict[str, Option]:
    """The option of every deployment that gets all its missing replicas, by uid.

    `requests`: by precedence. `missing`: replicas without a place, by uid; a deployment of which others stand
    keeps its configuration, and only its slots are counted.
    """
    offered = {
        request.uid: runnable
        for request in requests
        if missing[request.uid] and (runnable := _runnable(request, missing, eligibilities, world))
    }
    if len(offered) < 2:
        return {}
    asking = [request for request in requests if request.uid in offered]
    rows = _Rows(offered.values(), world)
    levels = {priority: rank for rank, priority in enumerate(sorted({one.priority for one in asking}))}
    demands = [
        Demand(rows.ways(offered[request.uid]), missing[request.uid], levels[request.priority])
        for request in asking
    ]
    return {
        request.uid: offered[request.uid][demand.ways.index(pick.way)]
        for request, demand, pick in zip(asking, demands, assign(demands, rows.slots), strict=True)
        if pick and pick.replicas == demand.replicas
    }


def _runnable(
    request: DeploymentRequest,
    missing: Mapping[str, int],
    eligibilities: Mapping[str, Eligibility],
    world: World,
) -> tuple[Option, ...]:
    eligibility = eligibilities[request.uid]
    if request.spec.placement.device is not Device.GPU or eligibility.by_node() is not None:
        return ()
    if single_node(request.volume) or not_possible(request, world.capabilities):
        return ()
    admitted = world.admission.admitted(request, eligibility)
    if request.current is not None and (request.pinned or missing[request.uid] < len(request.wanted)):
        option = world.catalog.option_in_force(request, request.current, admitted)
        return (option,) if option.admitted.pools else ()
    return tuple(option for option in world.catalog.options(request, admitted) if option.runs)


class _Rows:
    """Free slots by set of pools and size. An option takes from every set that its own pools lie in, so that
    nested sets (all A100, and those of them without a taint) are counted right.

    Replicas that must lie in one domain take from one row more: the GPUs of whole replicas that the domains
    hold. What others place in a domain is not seen there, so such a count may promise too much; then nodes
    are not found, and the deployment takes what has room."""

    def __init__(self, offered: Collection[tuple[Option, ...]], world: World) -> None:
        sets: dict[frozenset[Pool], None] = {}
        for options in offered:
            for option in options:
                sets[frozenset(option.admitted.pools)] = None
        self._sets = list(sets)
        self._containing = {
            inner: [index for index, outer in enumerate(self._sets) if inner <= outer] for inner in self._sets
        }
        self._known: dict[tuple[Way, ...], tuple[Way, ...]] = {}
        self.slots = [
            sum(world.room.shelf(pool).slots(size) for pool in pools)
            for pools in self._sets
            for size in SIZES
        ]
        self._together: dict[_Together, int] = {}
        for option in (option for options in offered for option in options if key_of(option)):
            if (group := _together(option)) not in self._together:
                self._together[group] = len(self.slots)
                self.slots.append(whole_replicas(option, world.room))

    def ways(self, options: Sequence[Option]) -> tuple[Way, ...]:
        found = tuple(self._way(option) for option in options)
        return self._known.setdefault(found, found)

    def _way(self, option: Option) -> Way:
        sets = self._containing[frozenset(option.admitted.pools)]
        rows = tuple(
            index * len(SIZES) + place
            for index in sets
            for place, size in enumerate(SIZES)
            if size <= option.gpus_together
        )
        if not key_of(option):
            return Way(option.cost, option.gpus, rows)
        own = _together(option)
        shared = tuple(row for group, row in self._together.items() if own.takes_from(group))
        return Way(option.cost, option.gpus, rows + shared)


@dataclass(frozen=True, slots=True)
class _Together:
    """Stages that lie in one domain."""

    pools: frozenset[Pool]
    key: str
    tensor: int
    pipeline: int

    def takes_from(self, other: _Together) -> bool:
        """Whether each replica takes whole ones of the other kind."""
        return (
            self.pools <= other.pools
            and self.key == other.key
            and self.tensor >= other.tensor
            and self.pipeline % other.pipeline == 0
        )


def _together(option: Option) -> _Together:
    config = option.config
    pools = frozenset(option.admitted.pools)
    return _Together(pools, key_of(option), config.tensor_parallel, config.pipeline_parallel)
