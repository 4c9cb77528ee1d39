"""What planning reads and what it answers: frozen, so that one plan sees one state of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanPlacement, PlanStatus, RejectedOption
from plimsoll.inventory.views import NodeView, PodView, VolumeView
from plimsoll.model.facts import ModelFacts
from plimsoll.planning.profiles import StoredProfile
from plimsoll_worker.launch import Capabilities


@dataclass(frozen=True, slots=True)
class DeploymentRequest:
    """One LLMDeployment to plan. Its model is known."""

    uid: str
    namespace: str
    name: str
    generation: int
    created: str
    """creationTimestamp, RFC 3339: age breaks ties of priority."""
    priority: int
    spec: LLMDeploymentSpec
    facts: ModelFacts
    revision: str
    """Name of the revision to plan for; PlanStatus.revision is set to it."""
    worker_image: str = ""
    """What the revision's workers run: what another image measured says nothing of this one."""
    volume: VolumeView | None = None
    current: PlanStatus | None = None
    """The plan of this same revision that is in force; its placements stay unless they are invalid."""
    excluded_nodes: frozenset[str] = field(default_factory=frozenset)
    """Nodes where this deployment was found unschedulable."""
    owner_uid: str = ""
    """Whose pods these are, where one LLMDeployment is planned for two revisions. Default: `uid`."""
    replicas: tuple[int, ...] | None = None
    """Which replicas to place. Default: 0 to spec.replicas - 1."""
    pinned: bool = False
    """The configuration of `current` stays even when none of its placements does."""
    excluded_configurations: frozenset[str] = field(default_factory=frozenset)
    """What ran out of memory before, see `planning.exclusions`."""

    @property
    def owner(self) -> str:
        return self.owner_uid or self.uid

    @property
    def wanted(self) -> tuple[int, ...]:
        """The replicas that need a place."""
        return tuple(range(self.spec.replicas)) if self.replicas is None else self.replicas


@dataclass(frozen=True, slots=True)
class Snapshot:
    nodes: tuple[NodeView, ...]
    pods: tuple[PodView, ...]
    """All bound or pinned pods of all namespaces that are not finished; promises included as views."""
    deployments: tuple[DeploymentRequest, ...]
    capabilities: Capabilities
    prices: Mapping[str, int] = field(default_factory=dict)
    """Relative price of one GPU by its product, as `placement.accelerators.products` names it. Where it is
    empty, the fewest GPUs cost least, then the smaller, then the older."""
    profiles: tuple[StoredProfile, ...] = ()
    """What was measured: it takes the place of closed forms."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a deployment, or some of its replicas, has no place."""

    reason: str
    """InsufficientMemory, InsufficientGPUs, InsufficientResources, NoMatchingNodes, EngineUnsupported,
    VolumeUnavailable, ContextTooLong."""
    message: str
    rejected: tuple[RejectedOption, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one deployment. `plan` holds every replica that has a place; `rejection` tells of those
    that have none, so both are set when only some fit."""

    plan: PlanStatus | None
    rejection: Rejection | None = None
    unplaced_replicas: tuple[int, ...] = ()

    @property
    def placements(self) -> tuple[PlanPlacement, ...]:
        return tuple(self.plan.placements) if self.plan else ()


Decisions = Mapping[str, Decision]
"""By uid of the LLMDeployment."""
