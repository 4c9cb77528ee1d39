"""MemoryProfiles in the cluster: read with doubt, written where workers taught something new.

The one part of learning that does I/O. A profile is written after the round that saw the report, never before
a pod: losing one costs a better plan, not a pod.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from plimsoll.actuate import events
from plimsoll.actuate.ownership import Owner
from plimsoll.api.v1alpha1 import API_VERSION
from plimsoll.api.v1alpha1.profile import PROFILE_KIND
from plimsoll.cluster import kube as api
from plimsoll.cluster.learning import learn
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.stored_profile import Key, Profile
from plimsoll.inventory.views import NodeView
from plimsoll.model.facts import ModelFacts
from plimsoll.planning.profiles import StoredProfile, stage_profile
from plimsoll.sizing.profile import contradiction

log = logging.getLogger(__name__)

Object = dict[str, Any]


class ProfileKeeper:
    """What planning may take from stored profiles, and the writes that reports ask for."""

    def __init__(self, kube: api.Kube, operator_namespace: str, instance: str) -> None:
        self._kube, self._operator_namespace, self._instance = kube, operator_namespace, instance
        self._judged: dict[tuple[Key, str], str] = {}
        """What was found wrong with each version of each profile; empty: nothing."""

    def believed(
        self, stored: Mapping[Key, Profile], facts: Mapping[str, ModelFacts], now: datetime
    ) -> tuple[StoredProfile, ...]:
        """Those that may speak: of a known model, whose closed forms they do not contradict. `facts`: by
        model revision. What is wrong with another is told once, in an event."""
        found = []
        judged: dict[tuple[Key, str], str] = {}
        for key, one in sorted(stored.items()):
            known = facts.get(one.spec.fingerprint.model_revision) if one.spec else None
            version = key, one.resource_version
            problem = one.problem
            if one.spec and known:
                problem = self._judged.get(version) or ""
                if version not in self._judged:
                    problem = contradiction(known, stage_profile(one.spec.fingerprint, one.status))
            if problem and version not in self._judged:
                self._doubt(one, problem, now)
            if problem or known:
                judged[version] = problem
            if one.spec and known and not problem:
                everybody = one.namespace == self._operator_namespace
                fingerprint = one.spec.fingerprint
                found.append(
                    StoredProfile(
                        "" if everybody else one.namespace,
                        fingerprint,
                        stage_profile(fingerprint, one.status),
                    )
                )
        self._judged = judged
        return tuple(found)

    def _doubt(self, one: Profile, problem: str, now: datetime) -> None:
        message = f"not planned from: {problem}; delete it, and it is measured anew"
        log.warning("MemoryProfile %s/%s: %s", one.namespace, one.name, message)
        owner = Owner(one.namespace, one.name, one.uid)
        body = events.event(
            owner, "ProfileIgnored", message, now, self._instance, warning=True, kind=PROFILE_KIND
        )
        try:
            self._kube.create(api.EVENTS, one.namespace, body)
        except api.KubeError as error:
            log.info("event about MemoryProfile %s is not posted: %s", one.name, error.message)

    def write(
        self,
        observed: Iterable[Observed],
        stored: Mapping[Key, Profile],
        nodes: Iterable[NodeView],
        now: datetime,
    ) -> None:
        """Keep what reports teach. A write that fails is tried again with the next round that sees it."""
        changed, expired = learn(observed, stored, {node.name: node for node in nodes}, now)
        for one in changed:
            try:
                self._put(one)
            except (api.Conflict, api.AlreadyExists):
                log.debug("MemoryProfile %s/%s changed meanwhile", one.namespace, one.name)
            except api.KubeError as error:
                log.warning("MemoryProfile %s/%s is not written: %s", one.namespace, one.name, error.message)
        for one in expired:
            try:
                self._kube.delete(api.PROFILES, one.namespace, one.name, uid=one.uid)
            except api.KubeError as error:
                log.info("MemoryProfile %s/%s is not deleted: %s", one.namespace, one.name, error.message)

    def _put(self, one: Profile) -> None:
        assert one.spec is not None, "only profiles that can be read are written"
        meta: Object = {"name": one.name, "namespace": one.namespace}
        body: Object = {
            "apiVersion": API_VERSION,
            "kind": PROFILE_KIND,
            "metadata": meta,
            "spec": one.spec.to_dict(),
        }
        if one.resource_version:
            meta["resourceVersion"] = one.resource_version
        else:
            created = self._kube.create(api.PROFILES, one.namespace, body)
            meta["resourceVersion"] = created["metadata"]["resourceVersion"]
        status = one.status.to_dict()
        self._kube.replace_status(api.PROFILES, one.namespace, one.name, body | {"status": status})
        log.info("MemoryProfile %s/%s: %d observations", one.namespace, one.name, one.status.observations)
