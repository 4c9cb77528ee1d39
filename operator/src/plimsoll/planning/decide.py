"""The decision for one deployment: what stands stays, the rest goes to the cheapest option that has room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus, RejectedOption
from plimsoll.planning.admission import Admission
from plimsoll.planning.candidates import Catalog
from plimsoll.planning.eligibility import VOLUME_UNAVAILABLE, Eligibility, most_replicas, single_node
from plimsoll.planning.formats import formats_of
from plimsoll.planning.options import Option
from plimsoll.planning.placement import place_replicas, redo, undo
from plimsoll.planning.rejections import (
    headline,
    left_to_others,
    nearest,
    no_cut,
    no_nodes,
    not_possible,
    why_not,
)
from plimsoll.planning.remedies import lower_precision
from plimsoll.planning.retention import Held
from plimsoll.planning.room import Room
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Rejection
from plimsoll.planning.supply import Supply
from plimsoll.planning.words import count
from plimsoll_worker.launch import Capabilities, Device


@dataclass(frozen=True, slots=True)
class World:
    """What all decisions of one plan share. `room` changes as they are made."""

    supply: Supply
    room: Room
    capabilities: Capabilities
    catalog: Catalog
    admission: Admission


def decide(
    request: DeploymentRequest,
    kept: Sequence[Held],
    eligibility: Eligibility,
    world: World,
    agreed: Option | None = None,
) -> Decision:
    """The plan with every replica that has a place, and why the others have none. Takes room for what it
    places. `agreed`: the option that was chosen together with other deployments."""
    placements = [held.placement for held in kept]
    served = {placement.replica for placement in placements}
    missing = [replica for replica in request.wanted if replica not in served]
    in_force = request.current if placements or not missing or request.pinned else None
    if in_force is not None and not missing:
        return Decision(finished(in_force, request, placements))
    rejection = not_possible(request, world.capabilities)
    if rejection is not None:
        plan = finished(in_force, request, placements) if in_force else None
        return Decision(plan, rejection, tuple(missing))
    search = _Search(request, placements, missing, eligibility, world)
    return search.extend(in_force) if in_force else search.choose(agreed)


class _Search:
    """Looks for places for the missing replicas of one deployment."""

    def __init__(
        self,
        request: DeploymentRequest,
        placements: list[PlanPlacement],
        missing: list[int],
        eligibility: Eligibility,
        world: World,
    ) -> None:
        self._request = request
        self._eligibility = eligibility
        self._placements = placements
        self._missing = missing
        self._world = world
        self._admitted = world.admission.admitted(request, eligibility)
        self._one_node = single_node(request.volume)
        limit = most_replicas(request.volume)
        self._placeable = missing if limit is None else missing[: max(0, limit - len(placements))]

    def extend(self, plan: PlanStatus) -> Decision:
        """More replicas of the configuration in force: all replicas of a revision are alike."""
        admitted = self._admitted
        if self._one_node:
            admitted = admitted.within(frozenset(placement.node for placement in self._placements))
        option = self._world.catalog.option_in_force(self._request, plan, admitted)
        placed = self._place(option)
        decided = finished(plan, self._request, [*self._placements, *placed])
        return self._decision(decided, option, placed)

    def choose(self, agreed: Option | None) -> Decision:
        """The first option, cheapest first, that places every replica; else the one that places most of
        them. The agreed one comes before all others."""
        if not self._admitted.pools:
            return Decision(None, self._no_nodes(), tuple(self._missing))
        if agreed is not None and (decision := self._as_agreed(agreed)):
            return decision
        options = self._options()
        tried: dict[Option, list[PlanPlacement]] = {}
        best: Option | None = None
        for option in options:
            placed = tried[option] = self._place(option) if option.runs else []
            undo(option, placed, self._world.room)
            if option.runs and self._complete(option, placed):
                return self._taken(option, tried)
            if len(placed) > (len(tried[best]) if best else 0):
                best = option
        return self._taken(best, tried) if best else self._rejected(options)

    def _as_agreed(self, agreed: Option) -> Decision | None:
        """None when the option has no room after all: the agreement counted GPUs only."""
        placed = self._place(agreed)
        undo(agreed, placed, self._world.room)
        if not self._complete(agreed, placed):
            return None
        cheaper = takewhile(lambda option: option is not agreed, self._options())
        return self._taken(agreed, {**dict.fromkeys(cheaper, ()), agreed: placed}, together=True)

    def _taken(
        self, best: Option, tried: Mapping[Option, Sequence[PlanPlacement]], *, together: bool = False
    ) -> Decision:
        """The plan of `best`, and the nearest of the others that were looked at."""
        placed = tried[best]
        others = [option for option in tried if option is not best or not self._complete(best, placed)]

        def failure(option: Option) -> RejectedOption | None:
            told = self._failure(option, tried[option])
            return left_to_others(option) if told is None and together else told

        rejected = nearest(others, failure)
        redo(best, placed, self._world.room)
        plan = finished(best.draft, self._request, placed).model_copy(update={"rejected": rejected})
        return self._decision(plan, best, placed)

    def _rejected(self, options: Sequence[Option]) -> Decision:
        if not options:
            return Decision(None, no_cut(self._request, self._admitted), tuple(self._missing))
        failures = {option: self._failure(option, []) for option in options}
        told = [failure or self._bound_by_volume(option) for option, failure in failures.items()]
        reason, message = headline(self._request, options, told, self._world.room)
        if instead := lower_precision(self._request, self._options_of, self._world.room):
            message = f"{message}; {instead}"
        rejection = Rejection(reason, message, tuple(nearest(options, failures.__getitem__)))
        return Decision(None, rejection, tuple(self._missing))

    def _complete(self, option: Option, placed: Sequence[PlanPlacement]) -> bool:
        return len(placed) == len(self._placeable) * option.config.pipeline_parallel

    def _options(self) -> tuple[Option, ...]:
        return self._options_of(self._request)

    def _options_of(self, request: DeploymentRequest) -> tuple[Option, ...]:
        """Also of the same deployment with another spec, to answer what a change would bring."""
        return self._world.catalog.options(request, self._admitted)

    def _place(self, option: Option) -> list[PlanPlacement]:
        return place_replicas(option, self._placeable, self._world.room, one_node=self._one_node)

    def _no_nodes(self) -> Rejection:
        refused = self._world.admission.refused(self._request, self._eligibility)
        return no_nodes(self._world.supply, refused, self._request.spec.placement.device)

    def _failure(self, option: Option, placed: Sequence[PlanPlacement]) -> RejectedOption | None:
        """Why the option was not taken: told of the room as it is with `placed` in it."""
        redo(option, placed, self._world.room)
        told = self._too_few(option, placed) if placed else why_not(option, self._world.room)
        undo(option, placed, self._world.room)
        return told

    def _too_few(self, option: Option, placed: Sequence[PlanPlacement]) -> RejectedOption:
        found = len({placement.replica for placement in placed})
        lacking = why_not(option, self._world.room)
        wanted = count(len(self._placeable), "replica")
        because = f": {lacking.message}" if lacking else ""
        return RejectedOption(
            option=option.name,
            reason=lacking.reason if lacking else VOLUME_UNAVAILABLE,
            message=f"has room for {found} of {wanted}{because}",
        )

    def _bound_by_volume(self, option: Option) -> RejectedOption:
        volume = self._request.volume
        claim = volume.claim if volume else ""
        modes = ", ".join(volume.access_modes) if volume else ""
        message = (
            f"PersistentVolumeClaim {claim} is {modes}: all replicas must share one node, and none has room"
        )
        return RejectedOption(option=option.name, reason=VOLUME_UNAVAILABLE, message=message)

    def _decision(self, plan: PlanStatus, option: Option, placed: Sequence[PlanPlacement]) -> Decision:
        found = {placement.replica for placement in placed}
        unplaced = tuple(replica for replica in self._missing if replica not in found)
        if not unplaced:
            return Decision(plan)
        if not option.admitted.pools:
            return Decision(plan, self._no_nodes(), unplaced)
        lacking = why_not(option, self._world.room) or self._bound_by_volume(option)
        return Decision(plan, Rejection(lacking.reason, lacking.message, (lacking,)), unplaced)


def finished(plan: PlanStatus, request: DeploymentRequest, placements: Sequence[PlanPlacement]) -> PlanStatus:
    """The plan with its placements and its one-line summary; the very same plan when it says so already."""
    ordered = list(placements)
    if len(ordered) > 1:
        ordered.sort(key=lambda placement: (placement.replica, placement.stage))
    if plan.placements == ordered and plan.revision == request.revision and plan.summary:
        return plan
    return plan.model_copy(
        update={
            "revision": request.revision,
            "placements": ordered,
            "summary": summary(plan, ordered),
        }
    )


def summary(plan: PlanStatus, placements: Sequence[PlanPlacement]) -> str:
    """BF16 TP2xPP1, 2 GPUs on 1 node (NVIDIA-L4)."""
    kept = formats_of(plan)
    shape = f"{kept.weights_name} TP{plan.tensor_parallel}xPP{plan.pipeline_parallel}"
    if kept.cache_name:
        shape += f" with {kept.cache_name}"
    nodes = sorted({placement.node for placement in placements})
    if plan.device is Device.CPU:
        where = nodes[0] if len(nodes) == 1 else count(len(nodes), "node")
        return f"{shape} on CPU of {where}"
    gpus = sum(placement.gpus for placement in placements)
    return f"{shape}, {count(gpus, 'GPU')} on {count(len(nodes), 'node')} ({plan.product})"
