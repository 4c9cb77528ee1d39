"""One resource on its way through planning: what it has, what it wants next, and the requests that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus, Replan
from plimsoll.cluster.course import Intent
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import OwnPod
from plimsoll.cluster.standing import Standing
from plimsoll.inventory.capacity import free_by_node, held_on
from plimsoll.inventory.views import NodeView, PodView
from plimsoll.planning.profiles import StoredProfile
from plimsoll.planning.snapshot import DeploymentRequest, Snapshot
from plimsoll_worker.launch import CAPABILITIES


@dataclass(frozen=True, slots=True)
class Room:
    """The part of a snapshot that all resources share."""

    nodes: tuple[NodeView, ...]
    pods: tuple[PodView, ...]
    priorities: Mapping[str, int]
    """Of PriorityClasses by name; the empty name is the cluster's default."""
    profiles: tuple[StoredProfile, ...] = ()
    """What was measured, as far as it is believed."""

    def snapshot(self, requests: Iterable[DeploymentRequest]) -> Snapshot:
        return Snapshot(self.nodes, self.pods, tuple(requests), CAPABILITIES, profiles=self.profiles)

    def without(self, owner: str, pods: Iterable[OwnPod]) -> Room:
        """Without these pods, and without what is only promised to their owner."""
        gone = {pod.uid for pod in pods}
        kept = (pod for pod in self.pods if pod.uid not in gone and (pod.uid or pod.owner_uid != owner))
        return replace(self, pods=tuple(kept))

    def free_gpus(self, found: Iterable[Standing], resources: Iterable[str]) -> dict[str, int]:
        """On the nodes of these replicas, of these extended resources."""
        names = {place.node for one in found for place in one.places}
        nodes = [node for node in self.nodes if node.name in names]
        free = free_by_node(nodes, (pod for pod in self.pods if held_on(pod) in names))
        wanted = set(resources)
        return {
            name: sum(max(0, amount) for kind, amount in left.extended.items() if kind in wanted)
            for name, left in free.items()
        }


Requests = dict[str, DeploymentRequest]
"""By uid of the request: the resource's own for the wanted revision, with the name behind it for others."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is known before planning."""

    observed: Observed
    spec: LLMDeploymentSpec
    """As it is now."""
    revision: Revision | None
    """The wanted one; None while the model is not known."""
    intent: Intent
    told: Mapping[str, PlanStatus] = field(default_factory=dict)
    """Plans in force, by revision."""
    free: Mapping[str, int] = field(default_factory=dict)
    """GPUs by node, where it matters which replica goes."""

    @property
    def uid(self) -> str:
        return self.observed.resource.uid

    @property
    def update(self) -> str:
        return self.revision.name if self.revision else ""

    def key(self, revision: str) -> str:
        return self.uid if revision == self.update else f"{self.uid}/{revision}"

    def requests(self, intent: Intent, priorities: Mapping[str, int]) -> Requests:
        """The older revisions come first: what serves is asked before what is to come."""
        revisions = {revision.name: revision for revision in self.observed.revisions}
        found: Requests = {}
        for name, replicas in intent.kept().items():
            if name in revisions:
                spec = self._spec_of(revisions[name])
                found[self.key(name)] = self._request(revisions[name], spec, replicas, priorities)
        if self.revision:
            held = self.spec.plan.replan is Replan.MANUAL
            spec = self._spec_of(self.revision) if held else self.spec
            found[self.uid] = self._request(self.revision, spec, intent.placed, priorities)
        return found

    def _spec_of(self, revision: Revision) -> LLMDeploymentSpec:
        """What is in pods is the revision's to say; whether there are any is the resource's."""
        now = {"replicas": self.spec.replicas, "suspend": self.spec.suspend, "plan": self.spec.plan}
        return revision.spec.model_copy(update=now)

    def _request(
        self,
        revision: Revision,
        spec: LLMDeploymentSpec,
        replicas: tuple[int, ...],
        priorities: Mapping[str, int],
    ) -> DeploymentRequest:
        resource, current = self.observed.resource, self.told.get(revision.name)
        only_by_spec = self.spec.plan.replan is not Replan.ON_PLACEMENT_FAILURE
        return DeploymentRequest(
            uid=self.key(revision.name),
            owner_uid=resource.uid,
            namespace=resource.owner.namespace,
            name=resource.owner.name,
            generation=resource.generation,
            created=resource.created,
            priority=priorities.get(spec.placement.priority_class_name, 0),
            spec=spec,
            facts=revision.facts,
            revision=revision.name,
            worker_image=revision.worker_image,
            replicas=replicas,
            pinned=current is not None and (only_by_spec or revision.name != self.update),
            volume=self.observed.volume,
            current=current,
            excluded_nodes=frozenset(one.node for one in self.observed.exclusions if one.node),
            excluded_configurations=frozenset(revision.excluded),
        )

    def leaving(self, intent: Intent) -> list[OwnPod]:
        """Pods that hold room which is given to others of this resource."""
        stays = {(self.update, replica) for replica in intent.placed}
        stays |= {(one.revision, one.replica) for one in intent.older}
        return [
            pod
            for pod in self.observed.worker_pods
            if not pod.finished and (pod.terminating or (pod.revision, pod.replica) not in stays)
        ]
