"""Sorts one snapshot of the cluster by resource: what belongs to whom, and what each one's model and volume
are. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from plimsoll.actuate.launches import workers_subdomain
from plimsoll.actuate.ownership import INSPECT, WORKER
from plimsoll.actuate.pods import PodDefaults
from plimsoll.actuate.revisions import Revision
from plimsoll.cluster.observed import Memory, Object, Observed, ReportAnswer, Timing
from plimsoll.cluster.own_pods import OwnPod
from plimsoll.cluster.reservations import Held
from plimsoll.cluster.resource import Resource
from plimsoll.cluster.state import ClusterView, Key
from plimsoll.inventory.nodes import pods_using, volume_view
from plimsoll.inventory.views import VolumeView
from plimsoll.model.facts import ModelFacts
from plimsoll.settings import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings in the shape that pure code takes."""

    defaults: PodDefaults
    timing: Timing
    worker_image: str
    operator_namespace: str

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        return cls(
            defaults=PodDefaults(
                operator_image=settings.operator_image,
                image_pull_policy=settings.image_pull_policy,
                hf_endpoint=settings.hf_endpoint,
                inspect_timeout_seconds=settings.inspect_timeout_seconds,
            ),
            timing=Timing(
                inspect=timedelta(seconds=settings.inspect_timeout_seconds),
                unschedulable=timedelta(seconds=settings.unschedulable_seconds),
                exclusion=timedelta(seconds=settings.exclusion_seconds),
            ),
            worker_image=settings.worker_image,
            operator_namespace=settings.namespace,
        )


@lru_cache(maxsize=2)
def _shared(names: frozenset[str]) -> frozenset[str]:
    """The first of equal sets, so that comparing two rounds of a thousand resources looks at it once."""
    return names


def _named(objects: Mapping[Key, Object], namespace: str, *names: str) -> Mapping[str, Object]:
    """By name, whosoever they are."""
    return {name: objects[namespace, name] for name in names if (namespace, name) in objects}


class Observer:
    """Indexes a snapshot once and answers for each of its resources."""

    def __init__(
        self,
        view: ClusterView,
        promised: Mapping[Key, Held],
        reports: Mapping[str, ReportAnswer],
        terms: Terms,
        now: datetime,
    ) -> None:
        self._view, self._reports, self._terms, self._now = view, reports, terms, now
        self._promised_names: dict[str, set[str]] = defaultdict(set)
        for held in promised.values():
            if held.there_at is not None:
                self._promised_names[held.view.owner_uid].add(held.view.name)
        self._pods: dict[str, list[OwnPod]] = defaultdict(list)
        for entry in view.pods.values():
            if entry.own:
                self._pods[entry.own.owner_uid].append(entry.own)
        self._revisions: dict[str, list[Revision]] = defaultdict(list)
        self._facts: dict[Key, ModelFacts] = {}
        for (namespace, _), revision in sorted(view.revisions.items()):
            self._revisions[revision.owner.uid].append(revision)
            self._facts[namespace, revision.model_key] = revision.facts
        self._ready_nodes = _shared(frozenset(node.name for node in view.nodes if node.ready))
        self.pods = (
            *(entry.view for entry in view.pods.values() if entry.view),
            *(held.view for key, held in promised.items() if key not in view.pods),
        )
        """What planning counts: pods that are shown, and pods that were promised."""

    def observe(self, resource: Resource, memory: Memory) -> Observed:
        namespace = resource.owner.namespace
        pods = sorted(self._pods.get(resource.uid, ()), key=lambda pod: pod.name)
        return Observed(
            resource=resource,
            now=self._now,
            defaults=self._terms.defaults,
            timing=self._terms.timing,
            worker_image=self._terms.worker_image,
            operator_namespace=self._terms.operator_namespace,
            model_key=resource.model_key,
            known_facts=self._facts.get((namespace, resource.model_key)),
            revisions=tuple(self._revisions.get(resource.uid, ())),
            volume=self._volume(resource),
            inspect_pods=tuple(pod for pod in pods if pod.component == INSPECT),
            worker_pods=tuple(pod for pod in pods if pod.component == WORKER),
            services=_named(
                self._view.services, namespace, resource.owner.name, workers_subdomain(resource.owner)
            ),
            budgets=_named(self._view.budgets, namespace, resource.owner.name),
            reports={pod.uid: self._reports[pod.uid] for pod in pods if pod.uid in self._reports},
            promised=frozenset(self._promised_names.get(resource.uid, ())),
            ready_nodes=self._ready_nodes,
            unready_nodes={
                pod.node: node
                for pod in pods
                if (node := self._view.node_by_name.get(pod.node)) and not node.ready
            },
            memory=memory,
        )

    def _volume(self, resource: Resource) -> VolumeView | None:
        source = resource.spec.model.persistent_volume_claim if resource.spec else None
        if source is None:
            return None
        namespace, name = resource.owner.namespace, source.claim_name
        claim = self._view.claims.get((namespace, name))
        volume_name = claim["spec"].get("volumeName", "") if claim else ""
        volume = self._view.volumes.get(("", volume_name)) if volume_name else None
        using = pods_using(self.pods, namespace, name)
        return volume_view(claim, volume, namespace, name, self._view.nodes, using)
