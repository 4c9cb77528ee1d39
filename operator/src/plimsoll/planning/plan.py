"""The decision: which configuration each deployment runs, and on which nodes. Pure, deterministic, minimal
churn.

    keep what stands ─→ options for all that is new, together
                     ─→ for each deployment by priority, then age:
                          the configuration in force, else what was agreed, else the cheapest that has room
                            ─→ nodes for the missing replicas ─→ a plan, or a rejection in words

Nothing that is served moves because another one arrived: only what starts anyway is decided together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from plimsoll.api.v1alpha1 import PlanMode
from plimsoll.inventory.capacity import add, free_by_node, held_on, subtract, total
from plimsoll.inventory.views import PodView, Resources
from plimsoll.planning.admission import Admission
from plimsoll.planning.candidates import Catalog
from plimsoll.planning.decide import World, decide
from plimsoll.planning.eligibility import Eligibility
from plimsoll.planning.joint import options_together
from plimsoll.planning.options import worker_requests
from plimsoll.planning.retention import Held, keep, release
from plimsoll.planning.room import Room, overbooked, pods_by_owner
from plimsoll.planning.snapshot import Decision, Decisions, DeploymentRequest, Snapshot
from plimsoll.planning.supply import Supply

__all__ = ["plan", "worker_requests"]


def plan(snapshot: Snapshot) -> Decisions:
    """A decision for every deployment of the snapshot, by uid.

    Deployments that run pods come first, by priority, then age; those that are suspended or only planned are
    answered from what is left, and hold nothing.
    """
    world = world_of(snapshot)
    owned = pods_by_owner(snapshot.pods, (request.owner for request in snapshot.deployments))
    ordered = sorted(snapshot.deployments, key=precedence)
    holding = [request for request in ordered if holds(request)]
    eligibilities = {request.uid: Eligibility(request) for request in ordered}
    kept = {
        request.uid: keep(
            request, owned.get(request.owner, ()), world.supply, eligibilities[request.uid], world.room
        )
        for request in holding
    }
    decisions = _decided(holding, kept, eligibilities, world)
    _check(snapshot, holding, kept, decisions)
    for request in ordered:
        if not holds(request):
            own = owned.get(request.owner, ())
            decisions[request.uid] = _answer(request, own, eligibilities[request.uid], world)
    return decisions


def world_of(snapshot: Snapshot) -> World:
    """The cluster as it is before anything is decided."""
    placements = [request.spec.placement for request in snapshot.deployments]
    selectors = {key for placement in placements for key in placement.node_selector}
    domains = {placement.topology_key for placement in placements if placement.topology_key}
    supply = Supply(snapshot.nodes, selectors | domains)
    return World(
        supply=supply,
        room=Room(supply.by_name, snapshot.pods),
        capabilities=snapshot.capabilities,
        catalog=Catalog(snapshot.capabilities, snapshot.prices, snapshot.profiles),
        admission=Admission(supply),
    )


def _decided(
    holding: Sequence[DeploymentRequest],
    kept: Mapping[str, Sequence[Held]],
    eligibilities: Mapping[str, Eligibility],
    world: World,
) -> dict[str, Decision]:
    missing = {
        request.uid: len(request.wanted) - len({held.placement.replica for held in kept[request.uid]})
        for request in holding
    }
    agreed = options_together(holding, missing, eligibilities, world)
    # Whoever did not get all it asked for comes last: it must not take what others rely on.
    last = {uid for uid, count in missing.items() if agreed and count and uid not in agreed}
    return {
        one.uid: decide(one, kept[one.uid], eligibilities[one.uid], world, agreed.get(one.uid))
        for one in sorted(holding, key=lambda request: request.uid in last)
    }


def precedence(request: DeploymentRequest) -> tuple[int, str, str, str]:
    """Sort key: higher priority first, then older, then by name."""
    return -request.priority, request.created, request.namespace, request.name


def holds(request: DeploymentRequest) -> bool:
    """Whether the deployment runs pods, and so keeps others out of its places."""
    return not request.spec.suspend and request.spec.plan.mode is PlanMode.APPLY


def _answer(
    request: DeploymentRequest, own: Sequence[PodView], eligibility: Eligibility, world: World
) -> Decision:
    """The decision for a deployment that runs nothing: the plan in force while it is suspended, else a fresh
    look."""
    if request.spec.suspend and request.current is not None:
        return Decision(request.current)
    kept = keep(request, own, world.supply, eligibility, world.room)
    decision = decide(request, kept, eligibility, world)
    standing = {(held.placement.replica, held.placement.stage) for held in kept}
    if decision.plan is not None:
        requests = worker_requests(decision.plan, request.spec, request.facts)
        for placement in decision.placements:
            if (placement.replica, placement.stage) not in standing:
                world.room.give_back(placement.node, requests)
    release(kept, world.room)
    return decision


def _check(
    snapshot: Snapshot,
    holding: Iterable[DeploymentRequest],
    kept: Mapping[str, Sequence[Held]],
    decisions: Mapping[str, Decision],
) -> None:
    """Counts everything afresh, from the snapshot: an over-booked node is a fault of the planner, never a
    plan."""
    # By name, not by uid: a promised pod has none yet.
    spoken_for = {_key(pod) for held in kept.values() for entry in held for pod in entry.pods}
    held_by_placement: dict[str, list[Resources]] = {}
    promised: dict[str, Resources] = {}
    for request in holding:
        decided = decisions[request.uid].plan
        if decided is None:
            continue
        standing = {(e.placement.replica, e.placement.stage): e for e in kept[request.uid]}
        requests: Resources | None = None
        for placement in decided.placements:
            entry = standing.get((placement.replica, placement.stage))
            if entry is None:
                requests = requests or worker_requests(decided, request.spec, request.facts)
            amount = entry.resources if entry else requests
            assert amount is not None, "a new placement asks for what its plan says"
            held_by_placement.setdefault(placement.node, []).append(amount)
            if entry is None or not entry.running:
                promised[placement.node] = add(promised.get(placement.node, Resources()), amount)
    others = (pod for pod in snapshot.pods if held_on(pod) in promised and _key(pod) not in spoken_for)
    free = free_by_node((node for node in snapshot.nodes if node.name in promised), others)
    for name in promised:
        free[name] = subtract(free.get(name, Resources()), total(held_by_placement[name]))
    problem = overbooked(free, promised)
    assert not problem, problem


def _key(pod: PodView) -> tuple[str, str]:
    return pod.namespace, pod.name
