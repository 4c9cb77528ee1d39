"""Turns what is observed into planning's snapshot, and planning's answers into one decision per resource.
Pure.

Planning counts the pods of a replaced revision as holding their room, because they do: nobody else may have
it. But their own successor may, since they go before it comes (Recreate). So a resource that finds no room
beside its own old pods is planned a second time without them, with everybody else's decision held fast.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from plimsoll.actuate.revisions import Revision
from plimsoll.cluster.inspection import inspect_model
from plimsoll.cluster.lifecycle import wanted
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.targets import plans_in_force
from plimsoll.inventory.views import NodeView, PodView
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Rejection, Snapshot
from plimsoll_worker.launch import CAPABILITIES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """The part of a snapshot that all resources share."""

    nodes: tuple[NodeView, ...]
    pods: tuple[PodView, ...]
    priorities: Mapping[str, int]
    """Of PriorityClasses by name; the empty name is the cluster's default."""


def decide(observed: Iterable[Observed], room: Room) -> Mapping[str, Decision]:
    """Decisions by uid, for all resources whose model is known."""
    requests: dict[str, DeploymentRequest] = {}
    superseded: dict[str, set[str]] = {}
    for one in observed:
        if one.resource.deleting or one.resource.spec is None:
            continue
        revision = wanted(one, inspect_model(one))
        if revision is None:
            continue
        requests[one.resource.uid] = request_for(one, revision, room.priorities)
        old = {pod.uid for pod in one.worker_pods if pod.revision != revision.name}
        if old:
            superseded[one.resource.uid] = old
    decisions, sound = _plan(room, requests)
    for uid in superseded.keys() & sound.keys():
        if decisions[uid].rejection:
            decisions[uid] = _in_own_place(room, sound, decisions, uid, superseded[uid])
    return decisions


def _plan(
    room: Room, requests: Mapping[str, DeploymentRequest]
) -> tuple[dict[str, Decision], Mapping[str, DeploymentRequest]]:
    """All at once; and if planning breaks on one of them, without that one: a fault that one resource brings
    to light must not stop the others. Its own pods are left alone, and it is told. Second: what can be
    planned."""
    try:
        return dict(plan(_snapshot(room, requests.values()))), requests
    except Exception:
        log.exception("planning failed, looking for the resource that it fails on")
    sound: dict[str, DeploymentRequest] = {}
    faulty: dict[str, Decision] = {}
    for uid, request in requests.items():
        try:
            plan(_snapshot(room, [*sound.values(), request]))
        except Exception as error:
            log.exception("planning fails with %s/%s", request.namespace, request.name)
            message = f"planning failed, this is a fault of Plimsoll: {type(error).__name__}: {error}"
            faulty[uid] = Decision(None, Rejection("PlannerFailed", message))
        else:
            sound[uid] = request
    return dict(plan(_snapshot(room, sound.values()))) | faulty, sound


def request_for(observed: Observed, revision: Revision, priorities: Mapping[str, int]) -> DeploymentRequest:
    resource = observed.resource
    assert resource.spec is not None, "only resources that parse are planned"
    priority_class = resource.spec.placement.priority_class_name
    return DeploymentRequest(
        uid=resource.uid,
        namespace=resource.owner.namespace,
        name=resource.owner.name,
        generation=resource.generation,
        created=resource.created,
        priority=priorities.get(priority_class, 0),
        spec=resource.spec,
        facts=revision.facts,
        revision=revision.name,
        volume=observed.volume,
        current=plans_in_force(observed).get(revision.name),
        excluded_nodes=frozenset(
            exclusion.node for exclusion in observed.memory.exclusions if exclusion.until > observed.now
        ),
    )


def _snapshot(room: Room, requests: Iterable[DeploymentRequest]) -> Snapshot:
    return Snapshot(room.nodes, room.pods, tuple(requests), CAPABILITIES)


def _in_own_place(
    room: Room,
    requests: Mapping[str, DeploymentRequest],
    decisions: Mapping[str, Decision],
    uid: str,
    superseded: set[str],
) -> Decision:
    """Plans one resource into the room of its own old pods. Everybody else keeps what was just decided."""
    standing = [
        replace(request, current=decisions[other].plan) if other != uid else request
        for other, request in requests.items()
    ]
    rest = Room(room.nodes, tuple(pod for pod in room.pods if pod.uid not in superseded), room.priorities)
    return plan(_snapshot(rest, standing))[uid]
