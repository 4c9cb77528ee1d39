"""Carries out the actions of one resource, in order, stopping at the first that fails.

Stopping is safe because the order is that of what must survive, and because the next round derives what is
left from what is: nothing is undone, nothing is queued.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from plimsoll.actuate.ownership import REVISION
from plimsoll.actuate.recorder import Recorder
from plimsoll.api.v1alpha1 import API_VERSION, KIND
from plimsoll.cluster import kube as api
from plimsoll.cluster.observed import (
    Action,
    ApplyObject,
    CreatePod,
    DeletePod,
    DeleteRevision,
    EmitEvent,
    FailedInspection,
    Memory,
    Object,
    Observed,
    OpenGate,
    Refusal,
    WriteRevision,
    WriteStatus,
    backoff,
)
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.resource import Resource
from plimsoll.cluster.state import ClusterState, ClusterView
from plimsoll.inventory.capacity import held_on
from plimsoll.inventory.nodes import pod_view

log = logging.getLogger(__name__)

REFUSAL_BACKOFF = timedelta(seconds=2), timedelta(minutes=5)


class Ending(Enum):
    """How the actions of one resource ended."""

    DONE = "Done"
    GONE = "Gone"
    """The resource is no more."""
    OUTDATED = "Outdated"
    """Something changed meanwhile: look again, at once."""
    REFUSED = "Refused"
    """The API server would not take a pod; its words are in memory."""
    FAILED = "Failed"
    """The API server cannot be reached, or answers what nobody expects: later."""


@dataclass(frozen=True, slots=True)
class Result:
    ending: Ending
    memory: Memory
    problem: str = ""


class Executor:
    """The only writer. Safe to use for several resources at once."""

    def __init__(
        self,
        kube: api.Kube,
        state: ClusterState,
        ledger: Ledger,
        recorder: Recorder,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._state, self._ledger, self._recorder = kube, state, ledger, recorder
        self._monotonic = monotonic

    def carry_out(
        self, observed: Observed, actions: Iterable[Action], memory: Memory, view: ClusterView
    ) -> Result:
        resource = observed.resource
        plans = resource.status.plans
        extra = {
            "namespace": resource.owner.namespace,
            "deployment": resource.owner.name,
            "plan": plans[-1].id if plans else "",
        }
        for action in actions:
            if isinstance(action, WriteStatus) and action.status.plans:
                extra["plan"] = action.status.plans[-1].id
            try:
                self._do(action, resource, observed.now, view)
            except api.NotFound as error:
                if isinstance(action, (WriteStatus, CreatePod, ApplyObject, WriteRevision)):
                    log.info("gone: %s", error.message, extra=extra)
                    self._state.resources.drop(resource)
                    return Result(Ending.GONE, memory)
            except (api.Conflict, api.AlreadyExists) as error:
                log.info("looking again: %s", error.message, extra=extra)
                self._refresh(resource)
                return Result(Ending.OUTDATED, memory, error.message)
            except api.Refused as error:
                log.warning("%s refused: %s", _name(action), error.message, extra=extra)
                if isinstance(action, CreatePod):
                    return Result(
                        Ending.REFUSED, _refused(memory, action, error.message, observed), error.message
                    )
                return Result(Ending.FAILED, memory, error.message)
            except api.Unavailable as error:
                log.warning("%s failed: %s", _name(action), error.message, extra=extra)
                return Result(Ending.FAILED, memory, error.message)
            else:
                _tell(action, extra)
        return Result(Ending.DONE, memory)

    def _do(self, action: Action, resource: Resource, now: datetime, view: ClusterView) -> None:
        namespace = resource.owner.namespace
        match action:
            case WriteRevision(revision):
                self._state.revisions.learn(self._made(api.REVISIONS, revision.to_object(), resource))
            case WriteStatus(status):
                self._write_status(resource, status.to_dict())
            case CreatePod():
                self._create_pod(action, resource, view)
            case DeletePod(name, uid):
                self._delete(api.PODS, namespace, name, uid)
            case OpenGate(name, uid):
                opened = {"metadata": {"uid": uid}, "spec": {"schedulingGates": None}}
                self._kube.merge(api.PODS, namespace, name, opened)
            case ApplyObject(body, _, exists):
                kind, feed = {
                    "Service": (api.SERVICES, self._state.services),
                    "PodDisruptionBudget": (api.BUDGETS, self._state.budgets),
                }[body["kind"]]
                feed.learn(self._kube.apply(kind, namespace, body["metadata"]["name"], body, force=exists))
            case DeleteRevision(name):
                if view.slices:
                    # First the templates: while the revision is there, this is done again.
                    self._kube.delete_all(api.CLAIM_TEMPLATES, namespace, f"{REVISION}={name}")
                self._delete(api.REVISIONS, namespace, name, "")
            case EmitEvent():
                self._recorder.tell(resource.owner, action, now)

    def _write_status(self, resource: Resource, status: Object) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": resource.owner.name,
                "namespace": resource.owner.namespace,
                "uid": resource.uid,
                "resourceVersion": resource.resource_version,
            },
            "status": status,
        }
        answer = self._kube.replace_status(api.DEPLOYMENTS, *resource.key, body)
        self._state.resources.learn(answer)

    def _create_pod(self, action: CreatePod, resource: Resource, view: ClusterView) -> None:
        key = (resource.owner.namespace, action.name)
        if action.pinned:
            self._promise(action, view)
        try:
            if action.template is not None:
                self._made(api.CLAIM_TEMPLATES, action.template, resource)
            if self._made(api.PODS, action.body, resource)["metadata"].get("deletionTimestamp"):
                raise api.Conflict(f"pod {action.name} is being deleted")
        except api.Unavailable as error:
            # The API server may have made it all the same, and may show it late: its room is not free.
            if isinstance(error, api.NotLeading):
                self._ledger.release(key)
            raise
        except api.KubeError:
            self._ledger.release(key)
            raise
        self._ledger.confirm(key, self._monotonic())

    def _made(self, kind: api.Kind, body: Object, resource: Resource) -> dict[str, Any]:
        """The object, newly made or there already: its name follows from what was decided, so one that is
        there says the same. Raises Refused where it is somebody else's, Conflict where it goes meanwhile."""
        namespace, name = resource.owner.namespace, body["metadata"]["name"]
        try:
            return self._kube.create(kind, namespace, body)
        except api.AlreadyExists:
            try:
                found = self._kube.get(kind, namespace, name)
            except api.NotFound as error:
                raise api.Conflict(f"{body['kind']} {name} was there and is gone: {error.message}") from None
        if not _owned(found, resource):
            raise api.Refused(f"{body['kind']} {name} exists and belongs to something else: delete it")
        return found

    def _promise(self, action: CreatePod, view: ClusterView) -> None:
        pod = pod_view(dict(action.body))
        assert pod is not None, "a pod that is about to be created is not finished"
        name = held_on(pod)
        node, shown = view.node_by_name.get(name), view.pods_by_node.get(name, ())
        self._ledger.promise(pod, node, shown, self._monotonic())

    def _delete(self, kind: api.Kind, namespace: str, name: str, uid: str) -> None:
        try:
            self._kube.delete(kind, namespace, name, uid=uid)
        except api.Conflict:
            log.debug("%s %s/%s is another one by now", kind.plural, namespace, name)

    def _refresh(self, resource: Resource) -> None:
        """Learn the newest version of the resource; kopf's event may be on its way still."""
        try:
            self._state.resources.apply("MODIFIED", self._kube.get(api.DEPLOYMENTS, *resource.key))
        except api.NotFound:
            self._state.resources.drop(resource)
        except api.KubeError as error:
            log.info("cannot read %s/%s: %s", *resource.key, error.message)


def _owned(obj: Object, resource: Resource) -> bool:
    return any(ref.get("uid") == resource.uid for ref in obj["metadata"].get("ownerReferences") or ())


def _refused(memory: Memory, action: CreatePod, message: str, observed: Observed) -> Memory:
    if action.pinned:
        failures = 1 + (memory.refusal.failures if memory.refusal else 0)
        return replace(
            memory,
            refusal=Refusal(message, failures, observed.now + backoff(failures, *REFUSAL_BACKOFF)),
        )
    failures = 1 + (memory.inspection.failures if memory.inspection else 0)
    failed = FailedInspection(
        model_key=observed.model_key,
        reason="PodRefused",
        message=message,
        failures=failures,
        retry_at=observed.now + backoff(failures, *REFUSAL_BACKOFF),
    )
    return replace(memory, inspection=failed)


def _name(action: Action) -> str:
    return type(action).__name__


def _tell(action: Action, extra: dict[str, str]) -> None:
    match action:
        case WriteRevision(revision):
            log.info("revision %s written", revision.name, extra=extra)
        case WriteStatus():
            log.info("status written", extra=extra)
        case CreatePod():
            log.info("pod %s created", action.name, extra=extra)
        case DeletePod(name, _, why):
            log.info("pod %s deleted: %s", name, why, extra=extra)
        case OpenGate(name):
            log.info("pod %s may be scheduled: its replica is complete", name, extra=extra)
        case ApplyObject(body, why):
            log.info("%s %s applied: %s", body["kind"], body["metadata"]["name"], why, extra=extra)
        case DeleteRevision(name):
            log.info("revision %s deleted: nothing uses it", name, extra=extra)
        case EmitEvent(reason, message):
            log.debug("event %s: %s", reason, message, extra=extra)
