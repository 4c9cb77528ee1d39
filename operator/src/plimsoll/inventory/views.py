"""Slim frozen views of Nodes, Pods and volumes: what planning reads, and nothing else.

Informers hand over objects of the API server, the command line hands over saved YAML; both become these views
through `inventory.nodes`, so the planner runs on the very same input. Whole API objects were rejected: a pod
takes about 40 KB. Amounts: CPU in millicores, memory and storage in bytes, extended resources in units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from plimsoll.inventory.gpu_class import GPUClass

EMPTY: Mapping[str, int] = MappingProxyType({})
NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of everything a pod can ask for or a node can give."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    ephemeral_bytes: int = 0
    pods: int = 0
    extended: Mapping[str, int] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class NodeView:
    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    unschedulable: bool
    ready: bool
    allocatable: Resources
    annotations: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    problems: tuple[str, ...] = ()
    """What could not be read, field and value named; the amount counts as none."""
    gpus: tuple[GPUClass, ...] = ()
    """Its kinds of GPU, usable or not. They are read from the labels when the node changes, not for every
    plan."""
    unready_since: str = ""
    """RFC 3339; empty while it is ready."""
    unready_why: str = ""
    """In the words of its kubelet, or of the controller that misses it."""


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod that is not finished. `requests` are effective: init containers, sidecars and overhead are in
    it."""

    namespace: str
    name: str
    uid: str
    node: str
    """Empty while the pod is not bound."""
    pinned_node: str
    """Node the pod is pinned to by a `matchFields metadata.name` affinity; empty when it is not."""
    phase: str
    terminating: bool
    requests: Resources
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    owner_uid: str = ""
    claims: tuple[str, ...] = ()
    """PersistentVolumeClaims of its namespace that it mounts."""
    devices: Mapping[str, int] = field(default_factory=lambda: EMPTY)
    """Of `requests`, what it will get through ResourceClaims, by resource."""


@dataclass(frozen=True, slots=True)
class VolumeView:
    """What a PersistentVolumeClaim (and its volume) says about where its pods can run."""

    namespace: str
    claim: str
    bound: bool
    node_names: frozenset[str] | None = None
    """Nodes that the volume's node affinity admits; None: any node."""
    access_modes: tuple[str, ...] = ()
    used_on: frozenset[str] = field(default_factory=frozenset)
    """Nodes that run pods of this claim: a ReadWriteOnce volume can only be used there."""
    reason: str = ""
    """Why the claim cannot be used (missing, lost); empty when it can."""
