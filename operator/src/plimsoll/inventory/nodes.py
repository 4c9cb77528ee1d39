"""API objects, as plain JSON, to the slim views that planning reads.

The command line feeds saved YAML through the very same functions, so a plan made offline is the operator's
plan. A node is never refused: what cannot be read counts as nothing there and is named in `problems`. A pod's
requests must be readable, because what it holds cannot be guessed: a bad quantity raises QuantityError (the
API server admits none).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from plimsoll.inventory.capacity import CPU, EPHEMERAL, MEMORY, PODS, add, held_on, largest, total
from plimsoll.inventory.labels import gpu_classes
from plimsoll.inventory.objects import Object, part, parts
from plimsoll.inventory.quantity import QuantityError, at_least, at_most, parse_quantity
from plimsoll.inventory.selectors import matches_any, pinned_node
from plimsoll.inventory.views import NodeView, PodView, Resources, Taint, VolumeView

H = TypeVar("H", bound=Hashable)

DEVICES = "plimsoll.dev/devices"
"""Annotation of worker pods whose GPUs are claimed: amounts by resource, JSON. Until the scheduler has given
devices to the claim, nothing else tells what the pod will hold."""
FINISHED = ("Succeeded", "Failed")
VENDOR_ANNOTATIONS = ("hami.io/", "4pd.io/")
"""Prefixes of the annotations that `labels` reads; the rest of them (kilobytes on real nodes) is left
behind."""


def node_view(obj: Object) -> NodeView:
    """The view of a Node. Never raises on odd content."""
    meta, spec, status = part(obj, "metadata"), part(obj, "spec"), part(obj, "status")
    problems: list[str] = []
    ready = _ready_condition(status)
    is_ready = ready.get("status") == "True" and not meta.get("deletionTimestamp")
    view = NodeView(
        name=str(meta.get("name", "")),
        labels={str(key): str(value) for key, value in part(meta, "labels").items()},
        taints=shared(
            tuple(
                Taint(str(taint.get("key", "")), str(taint.get("value") or ""), str(taint.get("effect", "")))
                for taint in parts(spec, "taints")
            )
        ),
        unschedulable=bool(spec.get("unschedulable")),
        ready=is_ready,
        allocatable=_allocatable(part(status, "allocatable"), problems),
        annotations={
            str(key): str(value)
            for key, value in part(meta, "annotations").items()
            if str(key).startswith(VENDOR_ANNOTATIONS)
        },
        problems=tuple(problems),
        unready_since="" if is_ready else str(ready.get("lastTransitionTime") or ""),
        unready_why="" if is_ready else str(ready.get("message") or ready.get("reason") or ""),
    )
    return replace(view, gpus=shared(gpu_classes(view)))


@lru_cache(maxsize=4096)
def shared(value: H) -> H:
    """The first of all equal values: thousands of nodes have the same taints and GPUs, and planning groups
    them by identity."""
    return value


def _ready_condition(status: Object) -> Object:
    return next((one for one in parts(status, "conditions") if one.get("type") == "Ready"), {})


def _allocatable(given: Object, problems: list[str]) -> Resources:
    def read(name: str, scale: int = 1, *, whole: bool = False) -> int:
        if name not in given:
            return 0
        try:
            exact = parse_quantity(given[name])
        except QuantityError as error:
            problems.append(f"status.allocatable[{name}]: {error}")
            return 0
        amount = at_most(given[name], scale)
        if amount < 0 or (whole and amount != exact):
            problems.append(f"status.allocatable[{name}] is {given[name]}: expected a whole number")
        return max(amount, 0)

    return Resources(
        cpu_millis=read(CPU, 1000),
        memory_bytes=read(MEMORY),
        ephemeral_bytes=read(EPHEMERAL),
        pods=read(PODS),
        extended={
            str(name): read(name, whole=True) for name in given if name not in (CPU, MEMORY, EPHEMERAL, PODS)
        },
    )


def pod_view(obj: Object) -> PodView | None:
    """The view of a Pod, None when it is finished and holds nothing. Raises QuantityError naming pod and
    container."""
    meta, spec, status = part(obj, "metadata"), part(obj, "spec"), part(obj, "status")
    phase = str(status.get("phase") or "Pending")
    if phase in FINISHED:
        return None
    owners = parts(meta, "ownerReferences")
    owner = next((owner for owner in owners if owner.get("controller")), owners[0] if owners else {})
    volumes = parts(spec, "volumes")
    namespace, name = str(meta.get("namespace") or "default"), str(meta.get("name", ""))
    try:
        requests = effective_requests(spec, status)
    except QuantityError as error:
        raise QuantityError(f"pod {namespace}/{name}: {error}") from error
    devices = _devices(meta, spec)
    return PodView(
        namespace=namespace,
        name=name,
        uid=str(meta.get("uid", "")),
        node=str(spec.get("nodeName") or ""),
        pinned_node=pinned_node(spec.get("affinity")),
        phase=phase,
        terminating=bool(meta.get("deletionTimestamp")),
        requests=add(requests, Resources(extended=devices)),
        devices=devices,
        labels={str(key): str(value) for key, value in part(meta, "labels").items()},
        owner_uid=str(owner.get("uid", "")),
        claims=tuple(
            str(volume["persistentVolumeClaim"].get("claimName", ""))
            for volume in volumes
            if isinstance(volume.get("persistentVolumeClaim"), Mapping)
        ),
    )


def _devices(meta: Object, spec: Object) -> Mapping[str, int]:
    """What a pod of ours claims. What cannot be read is nothing: the claim itself tells soon."""
    text = part(meta, "annotations").get(DEVICES)
    if not text or not spec.get("resourceClaims"):
        return {}
    try:
        found = json.loads(str(text))
    except ValueError:
        return {}
    amounts = found.items() if isinstance(found, dict) else ()
    return {str(name): amount for name, amount in amounts if isinstance(amount, int) and amount > 0}


def effective_requests(spec: Object, status: Object) -> Resources:
    """What the scheduler counts for a pod: the larger of what runs (containers and sidecars) and of each
    start-up step (an init container and the sidecars before it); pod-level requests instead where given; then
    the overhead.

    kubernetes `staging/src/k8s.io/component-helpers/resource/helpers.go`, PodRequests. While a container is
    resized in place, the larger of the asked and the granted amount counts.
    """
    granted = {
        str(entry.get("name")): part(part(entry, "resources"), "requests")
        for key in ("containerStatuses", "initContainerStatuses")
        for entry in parts(status, key)
    }
    running = total(_container_requests(container, granted) for container in parts(spec, "containers"))
    sidecars, start = Resources(), Resources()
    for container in parts(spec, "initContainers"):
        step = add(_container_requests(container, granted), sidecars)
        if container.get("restartPolicy") == "Always":
            sidecars = step
        start = largest(start, step)
    needed = largest(add(running, sidecars), start)
    needed = _pod_level(needed, part(spec, "resources"))
    overhead = _amounts(part(spec, "overhead"), "overhead")
    return add(add(needed, overhead), Resources(pods=1))


def _container_requests(container: Object, granted: Mapping[str, Object]) -> Resources:
    """A resource with a limit and no request asks for its limit, as the API server defaults it."""
    where = f"container {container.get('name', '?')}"
    resources = part(container, "resources")
    asked = {**part(resources, "limits"), **part(resources, "requests")}
    amount = _amounts(asked, where)
    actual = granted.get(str(container.get("name")))
    return largest(amount, _amounts(actual, where)) if actual else amount


def _pod_level(needed: Resources, resources: Object) -> Resources:
    """`spec.resources` covers CPU, memory and huge pages; it replaces the sum of the containers."""
    given = {**part(resources, "limits"), **part(resources, "requests")}
    if not given:
        return needed
    amount = _amounts(given, "the pod's own resources")
    return Resources(
        cpu_millis=amount.cpu_millis if CPU in given else needed.cpu_millis,
        memory_bytes=amount.memory_bytes if MEMORY in given else needed.memory_bytes,
        ephemeral_bytes=needed.ephemeral_bytes,
        pods=needed.pods,
        extended={**needed.extended, **amount.extended},
    )


def _amounts(given: Object, where: str) -> Resources:
    def read(name: str, scale: int = 1) -> int:
        if name not in given:
            return 0
        try:
            return max(0, at_least(given[name], scale))
        except QuantityError as error:
            raise QuantityError(f"{where}: request for {name}: {error}") from error

    return Resources(
        cpu_millis=read(CPU, 1000),
        memory_bytes=read(MEMORY),
        ephemeral_bytes=read(EPHEMERAL),
        extended={str(name): read(name) for name in given if name not in (CPU, MEMORY, EPHEMERAL, PODS)},
    )


def pods_using(pods: Iterable[PodView], namespace: str, claim: str) -> tuple[PodView, ...]:
    """The pods that mount a claim."""
    return tuple(pod for pod in pods if pod.namespace == namespace and claim in pod.claims)


def volume_view(
    claim: Object | None,
    volume: Object | None,
    namespace: str,
    name: str,
    nodes: Iterable[NodeView],
    pods_using: Iterable[PodView] = (),
) -> VolumeView:
    """Where pods of the claim `namespace`/`name` can run. `pods_using`: the unfinished pods that mount it."""
    if claim is None:
        return VolumeView(
            namespace,
            name,
            bound=False,
            reason=f"PersistentVolumeClaim {name} does not exist in namespace {namespace}",
        )
    phase = str(part(claim, "status").get("phase") or "Pending")
    bound = phase == "Bound" and volume is not None
    spec = part(volume or {}, "spec")
    modes: Sequence[Any] = spec.get("accessModes") or part(claim, "spec").get("accessModes") or ()
    required = part(part(spec, "nodeAffinity"), "required").get("nodeSelectorTerms")
    return VolumeView(
        namespace=namespace,
        claim=name,
        bound=bound,
        node_names=frozenset(node.name for node in nodes if matches_any(required, node))
        if required
        else None,
        access_modes=tuple(str(mode) for mode in modes),
        used_on=frozenset(where for pod in pods_using if (where := held_on(pod))),
        reason=_volume_reason(name, phase, str(part(claim, "spec").get("volumeName") or ""), volume),
    )


def _volume_reason(name: str, phase: str, volume_name: str, volume: Object | None) -> str:
    if phase == "Lost" or (phase == "Bound" and volume is None):
        return f"PersistentVolumeClaim {name} has lost its volume {volume_name}".rstrip()
    if volume is not None and part(volume, "metadata").get("deletionTimestamp"):
        return f"the volume {volume_name} of PersistentVolumeClaim {name} is being deleted"
    return ""
