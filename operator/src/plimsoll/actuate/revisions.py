"""Revisions: what a generation of worker pods is made from, frozen in an apps/v1 ControllerRevision.

A revision holds the spec, the model's facts and the images. So a restarted operator inspects no model twice,
an old replica can be healed from its own spec, and a new default image of the operator changes no running
pod: a revision is found again by spec and facts, whatever image it was made with.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from plimsoll.actuate.ownership import OPERATOR, Owner, digest, labels, metadata
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, ModelSource
from plimsoll.model.facts import FactsUnreadable, ModelFacts

NOTHING: Mapping[str, Collection[str]] = MappingProxyType({})
NOT_IN_PODS = {"replicas", "suspend", "plan"}
"""Fields that change how many pods there are, never what is in them."""
PARTS_NOT_IN_PODS = {
    "service": {"port"},
    "rollout": {"strategy", "progress_deadline_seconds", "max_restarts"},
}
"""The same of fields inside a part."""


@dataclass(frozen=True, slots=True)
class Revision:
    name: str
    owner: Owner
    number: int
    """Counts up; the newest is the largest."""
    spec: LLMDeploymentSpec
    facts: ModelFacts
    worker_image: str
    model_key: str
    """Which source the facts were read from, see `model_key`."""
    fingerprint: str
    """Hash over what changes pods, images apart."""
    excluded: tuple[str, ...] = ()
    """Configurations that ran out of memory before it was made; its plan is another one."""
    replan: str = ""
    """Value of the annotation plimsoll.dev/replan that it was made for."""

    @property
    def basis(self) -> str:
        return basis(self.spec, self.facts, self.worker_image)

    def to_object(self) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": metadata(self.owner, self.name, labels(self.owner, OPERATOR, revision=self.name)),
            "revision": self.number,
            "data": {
                "spec": self.spec.to_dict(),
                "facts": self.facts.pack(),
                "workerImage": self.worker_image,
                "modelKey": self.model_key,
                "fingerprint": self.fingerprint,
            }
            | ({"excluded": list(self.excluded)} if self.excluded else {})
            | ({"replan": self.replan} if self.replan else {}),
        }

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Revision | None:
        """None when the object is not one of ours, or of a version this program does not read: it is made
        anew."""
        meta, data = obj["metadata"], obj.get("data") or {}
        owner = next((ref for ref in meta.get("ownerReferences") or () if ref.get("controller")), None)
        if owner is None:
            return None
        try:
            return cls(
                name=meta["name"],
                owner=Owner(meta["namespace"], owner["name"], owner["uid"]),
                number=int(obj.get("revision") or 0),
                spec=LLMDeploymentSpec.model_validate(data["spec"]),
                facts=_unpacked(data["facts"]),
                worker_image=str(data["workerImage"]),
                model_key=str(data["modelKey"]),
                fingerprint=str(data["fingerprint"]),
                excluded=tuple(map(str, data.get("excluded") or ())),
                replan=str(data.get("replan") or ""),
            )
        except (KeyError, TypeError, ValidationError, FactsUnreadable):
            return None


@lru_cache(maxsize=256)
def _unpacked(text: str) -> ModelFacts:
    """Revisions of one model share its facts: what is one object is sized once a plan."""
    return ModelFacts.unpack(text)


def model_key(source: ModelSource) -> str:
    """What makes two resources of a namespace read the same model: source, revision and secret."""
    return digest(source.model_dump(mode="json", exclude={"served_name"}, exclude_defaults=True), 10)


_FINGERPRINTS: dict[int, tuple[ModelFacts, str]] = {}
"""By the identity of a spec, as long as it lives: every round asks for that of every resource, and most have
not changed."""


def fingerprint(spec: LLMDeploymentSpec, facts: ModelFacts) -> str:
    """Hash over what changes pods."""
    known = _FINGERPRINTS.get(id(spec))
    if known and known[0] is facts:
        return known[1]
    computed = _fingerprint(spec, facts)
    if known is None:
        weakref.finalize(spec, _FINGERPRINTS.pop, id(spec), None).atexit = False
    _FINGERPRINTS[id(spec)] = facts, computed
    return computed


def _fingerprint(spec: LLMDeploymentSpec, facts: ModelFacts) -> str:
    """Defaults are left out, so that a field added with a later version changes no running pod."""
    pods = spec.model_dump(mode="json", exclude=NOT_IN_PODS, exclude_defaults=True)
    for part, fields in PARTS_NOT_IN_PODS.items():
        if isinstance(inner := pods.get(part), dict):
            kept = {name: value for name, value in inner.items() if name not in fields}
            pods = pods | {part: kept} if kept else {name: pods[name] for name in pods if name != part}
    return digest([pods, facts.model_dump(mode="json", exclude_defaults=True)], 16)


def basis(spec: LLMDeploymentSpec, facts: ModelFacts, image: str) -> str:
    """Hash over what decides, beside a configuration, whether it runs out of memory."""
    variables = [(one.name, one.value) for one in spec.pod_template.env]
    return digest([facts.revision, image, variables, spec.placement.memory_headroom_percent], 16)


def image_for(
    spec: LLMDeploymentSpec, facts: ModelFacts, mine: Iterable[Revision], default_image: str, replan: str
) -> str:
    """The image that a new revision for this spec gets. It is another one than before only where people
    changed something: what ran out of memory meanwhile, and a new default of the operator, are no reason."""
    wanted = fingerprint(spec, facts)
    same = [
        revision
        for revision in mine
        if revision.replan == replan and fingerprint(revision.spec, revision.facts) == wanted
    ]
    newest = max(same, key=lambda revision: revision.number, default=None)
    return newest.worker_image if newest else spec.engine.image or default_image


def wanted_revision(
    owner: Owner,
    spec: LLMDeploymentSpec,
    facts: ModelFacts,
    existing: Iterable[Revision],
    default_image: str,
    *,
    excluded: Mapping[str, Collection[str]] = NOTHING,
    replan: str = "",
) -> Revision:
    """The revision for this spec: an existing one that says the same, else a new one. `excluded`:
    configurations that ran out of memory, by their basis. `replan`: the annotation's value; empty keeps the
    newest one's."""
    mine = [revision for revision in existing if revision.owner.uid == owner.uid]
    newest = max(mine, key=lambda revision: revision.number, default=None)
    replan = replan or (newest.replan if newest else "")
    image = image_for(spec, facts, mine, default_image, replan)
    left_out = tuple(sorted(excluded.get(basis(spec, facts, image), ()))) if excluded else ()
    wanted = fingerprint(spec, facts)
    if left_out or replan:
        wanted = digest([wanted, left_out, replan], 16)
    same = [revision for revision in mine if revision.fingerprint == wanted]
    if same:
        return max(same, key=lambda revision: revision.number)
    return Revision(
        name=f"{owner.name}-{digest([wanted, image])}",
        owner=owner,
        number=1 + (newest.number if newest else 0),
        spec=spec,
        facts=facts,
        worker_image=image,
        model_key=model_key(spec.model),
        fingerprint=wanted,
        excluded=left_out,
        replan=replan,
    )
