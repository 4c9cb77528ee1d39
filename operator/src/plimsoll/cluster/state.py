"""What the operator knows of the cluster: small views in memory, fed by reflectors and kopf, read as frozen
snapshots.

A change that planning cannot see (a heartbeat, a container's status in somebody else's pod) changes no view,
so it wakes nobody: `on_change` is called only when a view differs.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from plimsoll.actuate.revisions import Revision
from plimsoll.cluster.own_pods import OwnPod, own_pod, owner_of
from plimsoll.cluster.resource import Resource, is_newer
from plimsoll.cluster.stored_profile import Profile
from plimsoll.inventory.capacity import held_on
from plimsoll.inventory.device_pools import DevicePools
from plimsoll.inventory.dra import ClaimView, SliceView, claim_view, slice_view
from plimsoll.inventory.nodes import node_view, pod_view
from plimsoll.inventory.selectors import pinned_node
from plimsoll.inventory.views import NodeView, PodView

T = TypeVar("T")
Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name; the namespace is empty for cluster-wide kinds."""


def key_of(obj: Mapping[str, Any]) -> Key:
    meta = obj["metadata"]
    return meta.get("namespace") or "", meta["name"]


@dataclass(frozen=True, slots=True)
class PodEntry:
    """A pod as planning counts it (None when it is finished), and more of it when it is the operator's
    own."""

    view: PodView | None
    own: OwnPod | None


@dataclass(frozen=True, slots=True)
class PriorityClass:
    name: str
    value: int
    is_default: bool


class View(Generic[T]):
    """One kind's objects, converted on arrival. Fed by one thread; `lock` is shared by the whole state."""

    def __init__(
        self,
        convert: Callable[[Object], T | None],
        lock: threading.RLock,
        on_change: Callable[[], None],
        on_deleted: Callable[[Key], None] = lambda _key: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_deleted`: also of what came and went between two snapshots."""
        self._convert, self._lock, self._monotonic = convert, lock, monotonic
        self._on_change, self._on_deleted = on_change, on_deleted
        self._entries: dict[Key, T] = {}
        self.listed_at = 0.0
        """When the last whole list was asked for, on the monotonic clock: what was there then is known."""
        self._version = ""
        """Of the newest change that the watch has shown."""

    def replace(self, objects: Iterable[Object]) -> None:
        began = self._monotonic()
        fresh = {key_of(obj): view for obj in objects if (view := self._convert(obj)) is not None}
        with self._lock:
            self._entries, self.listed_at = fresh, began
        # Also when it is as before: that something is not there was not known until now.
        self._on_change()

    def apply(self, event: str, obj: Object) -> None:
        key = key_of(obj)
        view = None if event == "DELETED" else self._convert(obj)
        if event == "DELETED":
            self._on_deleted(key)
        with self._lock:
            self._version = obj["metadata"].get("resourceVersion", "")
            if self._entries.get(key) == view:
                return
            if view is None:
                del self._entries[key]
            else:
                self._entries[key] = view
        self._on_change()

    def learn(self, obj: Object) -> None:
        """The API server's answer to this program's own write: nothing new, so nobody is woken. The watch may
        lag behind, and what it does not show yet would be written again. Where it does not, the answer is the
        older of the two: what somebody did since would be overlooked for good, a deletion too."""
        view = self._convert(obj)
        with self._lock:
            if view is not None and is_newer(obj["metadata"]["resourceVersion"], self._version):
                self._entries[key_of(obj)] = view

    def entries(self) -> dict[Key, T]:
        with self._lock:
            return dict(self._entries)


class Resources(View[Resource]):
    """LLMDeployments: fed by kopf's events, by fresh lists and by the answers to this program's own writes,
    so the newest resourceVersion wins whatever the order."""

    def apply(self, event: str, obj: Object) -> None:
        with self._lock:
            known = self._entries.get(key_of(obj))
            meta = obj["metadata"]
            if event == "DELETED":
                if known is None or known.uid != meta["uid"]:
                    return
                del self._entries[known.key]
            elif known and not is_newer(meta["resourceVersion"], known.resource_version):
                return  # also of an older one that had the name
            else:
                self._entries[key_of(obj)] = Resource.parse(obj, known)
        self._on_change()

    def replace(self, objects: Iterable[Object], version: str | None = None) -> None:
        """`version`: the resourceVersion of the list. While it was on its way, changed resources and new ones
        may have been seen: what is newer than the list stays as it is. None: nothing is."""
        with self._lock:
            known = dict(self._entries)
        listed: dict[Key, Resource] = {}
        for obj in objects:
            mine, meta = known.get(key_of(obj)), obj["metadata"]
            same = mine is not None and mine.uid == meta["uid"]
            if mine and same and not is_newer(meta["resourceVersion"], mine.resource_version):
                listed[mine.key] = mine
            else:
                listed[key_of(obj)] = Resource.parse(obj, mine)
        with self._lock:
            younger = {
                key: one
                for key, one in self._entries.items()
                if version is not None and is_newer(one.resource_version, version)
            }
            found = listed | younger
            changed, self._entries = found != self._entries, found
        if changed:
            self._on_change()

    def learn(self, obj: Object) -> None:
        with self._lock:
            known = self._entries.get(key_of(obj))
            if known and is_newer(obj["metadata"]["resourceVersion"], known.resource_version):
                self._entries[known.key] = Resource.parse(obj, known)

    def drop(self, resource: Resource) -> None:
        """Forget a resource that the API server no longer has."""
        with self._lock:
            if (known := self._entries.get(resource.key)) and known.uid == resource.uid:
                del self._entries[resource.key]


@dataclass(frozen=True)
class ClusterView:
    """Everything known at one moment."""

    nodes: tuple[NodeView, ...]
    pods: Mapping[Key, PodEntry]
    claims: Mapping[Key, Object]
    volumes: Mapping[Key, Object]
    services: Mapping[Key, Object]
    budgets: Mapping[Key, Object]
    """PodDisruptionBudgets."""
    revisions: Mapping[Key, Revision]
    slices: Mapping[Key, SliceView]
    """ResourceSlices of GPU drivers; their devices are in `nodes` and `pods`."""
    priorities: Mapping[str, int]
    """PriorityClasses by name; the empty name stands for the cluster's default."""
    profiles: Mapping[Key, Profile]
    resources: Mapping[Key, Resource]
    pods_listed_at: float
    """When the last whole list of pods was asked for, on the monotonic clock."""

    @cached_property
    def node_by_name(self) -> Mapping[str, NodeView]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def pods_by_node(self) -> Mapping[str, Sequence[PodView]]:
        """Unfinished pods by the node that they are bound or pinned to."""
        found: dict[str, list[PodView]] = defaultdict(list)
        for entry in self.pods.values():
            if entry.view and (node := held_on(entry.view)):
                found[node].append(entry.view)
        return found


class ClusterState:
    def __init__(
        self,
        on_change: Callable[[], None],
        on_pod_deleted: Callable[[Key], None] = lambda _key: None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        lock = threading.RLock()
        self._lock = lock
        self.nodes: View[NodeView] = View(node_view, lock, on_change)
        self.pods: View[PodEntry] = View(_pod, lock, on_change, on_pod_deleted, monotonic)
        self.claims: View[Object] = View(_claim, lock, on_change)
        self.volumes: View[Object] = View(_volume, lock, on_change)
        self.slices: View[SliceView] = View(slice_view, lock, on_change)
        self.device_claims: View[ClaimView] = View(claim_view, lock, on_change)
        self._pools: tuple[tuple[SliceView, ...], DevicePools] = ((), DevicePools(()))
        self.services: View[Object] = View(_service, lock, on_change)
        self.budgets: View[Object] = View(_budget, lock, on_change)
        self.revisions: View[Revision] = View(Revision.parse, lock, on_change)
        self.priorities: View[PriorityClass] = View(_priority, lock, on_change)
        self.profiles: View[Profile] = View(Profile.parse, lock, on_change)
        self.resources = Resources(Resource.parse, lock, on_change)

    def snapshot(self) -> ClusterView:
        with self._lock:
            slices = self.slices.entries()
            nodes, pods = self._with_devices(tuple(slices.values()))
            return ClusterView(
                nodes=nodes,
                pods=pods,
                claims=self.claims.entries(),
                volumes=self.volumes.entries(),
                slices=slices,
                services=self.services.entries(),
                budgets=self.budgets.entries(),
                revisions=self.revisions.entries(),
                priorities=_by_name(list(self.priorities.entries().values())),
                profiles=self.profiles.entries(),
                resources=self.resources.entries(),
                pods_listed_at=self.pods.listed_at,
            )

    def _with_devices(
        self, slices: tuple[SliceView, ...]
    ) -> tuple[tuple[NodeView, ...], dict[Key, PodEntry]]:
        """Nodes and pods with the devices of DRA counted in."""
        nodes, pods = tuple(self.nodes.entries().values()), self.pods.entries()
        if not slices:
            return nodes, pods
        if slices != self._pools[0]:
            self._pools = slices, DevicePools(slices)
        views = [entry.view for entry in pods.values() if entry.view]
        nodes, holders = self._pools[1].count(nodes, views, self.device_claims.entries().values())
        for key, entry in pods.items():
            if entry.view and (holder := holders.get(entry.view.uid)):
                pods[key] = replace(entry, view=holder)
        return nodes, pods


def _pod(obj: Object) -> PodEntry | None:
    view = pod_view(obj)
    owner = owner_of(obj)
    own = own_pod(obj, owner, pinned_node((obj.get("spec") or {}).get("affinity"))) if owner else None
    return PodEntry(view, own) if view or own else None


def _taken(obj: Object) -> Object | None:
    """Of an object of somebody else, that it has the name; None when it belongs to an LLMDeployment."""
    meta = obj["metadata"]
    return None if owner_of(obj) else {"metadata": {key: meta[key] for key in ("name", "namespace")}}


def _slim(obj: Object, spec_fields: Sequence[str], status_fields: Sequence[str] = ()) -> Object:
    """An object without what nobody reads: managedFields, annotations, and most of spec and status."""
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    kept = ("name", "namespace", "uid", "labels", "ownerReferences", "deletionTimestamp")
    return {
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {key: spec[key] for key in spec_fields if key in spec},
        "status": {key: status[key] for key in status_fields if key in status},
    }


def _claim(obj: Object) -> Object:
    return _slim(obj, ("accessModes", "volumeName"), ("phase",))


def _volume(obj: Object) -> Object:
    return _slim(obj, ("accessModes", "nodeAffinity", "claimRef"), ("phase",))


def _budget(obj: Object) -> Object:
    return _taken(obj) or _slim(obj, ("minAvailable", "selector"))


def _service(obj: Object) -> Object:
    return _taken(obj) or _slim(obj, ("type", "clusterIP", "selector", "ports", "publishNotReadyAddresses"))


def _priority(obj: Object) -> PriorityClass:
    return PriorityClass(obj["metadata"]["name"], int(obj.get("value") or 0), bool(obj.get("globalDefault")))


def _by_name(classes: Sequence[PriorityClass]) -> dict[str, int]:
    found = {one.name: one.value for one in classes}
    default = max((one.value for one in classes if one.is_default), default=0)
    return found | {"": default}
