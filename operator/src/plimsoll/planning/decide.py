"""The decision for one deployment: what stands stays, the rest goes to the cheapest option that has room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus, RejectedOption
from plimsoll.inventory.views import NodeView
from plimsoll.planning.candidates import Option, cpu_option, gpu_options, option_in_force
from plimsoll.planning.eligibility import (
    VOLUME_UNAVAILABLE,
    Eligibility,
    Obstacle,
    most_replicas,
    single_node,
)
from plimsoll.planning.placement import place_replicas, undo
from plimsoll.planning.rejections import (
    headline,
    nearest,
    no_nodes,
    not_possible,
    why_not,
)
from plimsoll.planning.retention import Held
from plimsoll.planning.room import Room
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Rejection
from plimsoll.planning.supply import NodeGPUs, Supply, admitted_gpus
from plimsoll.planning.words import count
from plimsoll_worker.launch import Capabilities, Device


@dataclass(frozen=True, slots=True)
class World:
    """What all decisions of one plan share. `room` changes as they are made."""

    supply: Supply
    room: Room
    capabilities: Capabilities


def decide(
    request: DeploymentRequest, kept: Sequence[Held], eligibility: Eligibility, world: World
) -> Decision:
    """The plan with every replica that has a place, and why the others have none. Takes room for what it
    places."""
    placements = [held.placement for held in kept]
    served = {placement.replica for placement in placements}
    missing = [replica for replica in range(request.spec.replicas) if replica not in served]
    in_force = request.current if placements or not missing else None
    if in_force is not None and not missing:
        return Decision(finished(in_force, request, placements))
    rejection = not_possible(request, world.capabilities)
    if rejection is not None:
        plan = finished(in_force, request, placements) if in_force else None
        return Decision(plan, rejection, tuple(missing))
    search = _Search(request, placements, missing, eligibility, world)
    return search.extend(in_force) if in_force else search.choose()


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
        self._placements = placements
        self._missing = missing
        self._world = world
        self._gpus, self._nodes, self._refused = _admit(request, eligibility, world.supply)
        self._one_node = single_node(request.volume)
        limit = most_replicas(request.volume)
        self._placeable = missing if limit is None else missing[: max(0, limit - len(placements))]
        self._only = {placement.node for placement in placements} if self._one_node else set()

    def extend(self, plan: PlanStatus) -> Decision:
        """More replicas of the configuration in force: all replicas of a revision are alike."""
        option = option_in_force(self._request, plan, self._gpus, self._nodes)
        placed = self._place(option)
        decided = finished(plan, self._request, [*self._placements, *placed])
        return self._decision(decided, option, placed)

    def choose(self) -> Decision:
        """The first option, cheapest first, that places every replica; else the one that places most of
        them."""
        if not self._nodes:
            device = self._request.spec.placement.device
            return Decision(None, no_nodes(self._world.supply, self._refused, device), tuple(self._missing))
        options = self._options()
        failures: list[RejectedOption | None] = []
        best: Option | None = None
        most: list[PlanPlacement] = []
        for option in options:
            placed = self._place(option) if option.fits and not option.refusal else None
            if placed is not None and len(placed) == len(self._placeable):
                best, most = option, placed
                break
            failures.append(
                why_not(option, self._world.room) if not placed else self._too_few(option, placed)
            )
            undo(option, placed or [], self._world.room)
            if placed and len(placed) > len(most):
                best, most = option, placed
        else:
            for placement in most:
                assert best is not None, "placements belong to an option"
                self._world.room.take(placement.node, best.requests)
        rejected = nearest(options[: len(failures)], failures)
        if best is None:
            reason, message = self._headline(options, failures)
            return Decision(None, Rejection(reason, message, tuple(rejected)), tuple(self._missing))
        plan = finished(best.draft, self._request, most).model_copy(update={"rejected": rejected})
        return self._decision(plan, best, most)

    def _options(self) -> tuple[Option, ...]:
        if self._request.spec.placement.device is Device.CPU:
            return (cpu_option(self._request, self._world.capabilities, self._nodes),)
        return gpu_options(self._request, self._world.capabilities, self._gpus)

    def _place(self, option: Option) -> list[PlanPlacement]:
        return place_replicas(
            option,
            self._placeable,
            self._world.room,
            eligible=lambda node: not self._only or node.name in self._only,
            gpu_nodes=self._world.supply.gpu_nodes,
            one_node=self._one_node,
        )

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

    def _headline(
        self, options: Sequence[Option], failures: Sequence[RejectedOption | None]
    ) -> tuple[str, str]:
        told = [
            failure or self._bound_by_volume(option)
            for option, failure in zip(options, failures, strict=True)
        ]
        return headline(self._request, options, told, self._world.room)

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
        if not option.nodes:
            device = self._request.spec.placement.device
            return Decision(plan, no_nodes(self._world.supply, self._refused, device), unplaced)
        lacking = why_not(option, self._world.room) or self._bound_by_volume(option)
        return Decision(plan, Rejection(lacking.reason, lacking.message, (lacking,)), unplaced)


def _admit(
    request: DeploymentRequest, eligibility: Eligibility, supply: Supply
) -> tuple[tuple[NodeGPUs, ...], tuple[NodeView, ...], tuple[tuple[NodeView, Obstacle], ...]]:
    if request.spec.placement.device is Device.GPU:
        admitted = admitted_gpus(supply, request.spec.placement.accelerators, eligibility.obstacle)
        return admitted.gpus, tuple(entry.node for entry in admitted.gpus), admitted.refused
    nodes: list[NodeView] = []
    refused: list[tuple[NodeView, Obstacle]] = []
    for node in supply.nodes:
        if why := eligibility.obstacle(node):
            refused.append((node, why))
        else:
            nodes.append(node)
    return (), tuple(nodes), tuple(refused)


def finished(plan: PlanStatus, request: DeploymentRequest, placements: Sequence[PlanPlacement]) -> PlanStatus:
    """The plan with its placements and its one-line summary."""
    ordered = sorted(placements, key=lambda placement: (placement.replica, placement.stage))
    return plan.model_copy(
        update={
            "revision": request.revision,
            "placements": ordered,
            "summary": summary(plan, ordered),
        }
    )


def summary(plan: PlanStatus, placements: Sequence[PlanPlacement]) -> str:
    """BF16 TP2xPP1, 2 GPUs on 1 node (NVIDIA-L4)."""
    shape = f"{plan.weights} TP{plan.tensor_parallel}xPP{plan.pipeline_parallel}"
    nodes = sorted({placement.node for placement in placements})
    if plan.device is Device.CPU:
        where = nodes[0] if len(nodes) == 1 else count(len(nodes), "node")
        return f"{shape} on CPU of {where}"
    gpus = sum(placement.gpus for placement in placements)
    return f"{shape}, {count(gpus, 'GPU')} on {count(len(nodes), 'node')} ({plan.product})"
