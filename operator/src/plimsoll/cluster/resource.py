"""An LLMDeployment as the operator sees it: parsed once, the raw status kept to tell whether it changes.

A resource that does not parse is data, not an exception: `problem` says what is wrong, and becomes a
condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from plimsoll.actuate.ownership import REPLAN, RETRY, Owner
from plimsoll.actuate.revisions import model_key
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, LLMDeploymentStatus


@dataclass(frozen=True, slots=True)
class Resource:
    owner: Owner
    generation: int
    resource_version: str
    created: str
    deleting: bool
    spec: LLMDeploymentSpec | None
    problem: str
    """Why the spec does not parse, naming the field; empty when it does."""
    status: LLMDeploymentStatus
    """The default when the stored one is damaged: it is composed anew from what is."""
    raw_status: Mapping[str, Any]
    model_key: str
    """Which model it reads, see `actuate.revisions.model_key`; empty when the spec does not parse."""
    retry: str = ""
    """Value of the annotation plimsoll.dev/retry."""
    replan: str = ""
    """Value of the annotation plimsoll.dev/replan."""

    @property
    def uid(self) -> str:
        return self.owner.uid

    @property
    def key(self) -> tuple[str, str]:
        return self.owner.namespace, self.owner.name

    @classmethod
    def parse(cls, obj: Mapping[str, Any], known: Resource | None = None) -> Resource:
        """`known` is the same object as it was before. Most changes are of the status, this program's own;
        the generation tells whether the spec is another, and when it is not, it stays the very same."""
        meta = obj["metadata"]
        generation = int(meta.get("generation") or 0)
        if known and known.uid == meta["uid"] and known.generation == generation > 0:
            spec, problem, key = known.spec, known.problem, known.model_key
        else:
            spec, problem = _spec(obj)
            key = model_key(spec.model) if spec else ""
        raw = obj.get("status") or {}
        try:
            status = LLMDeploymentStatus.model_validate(raw)
        except ValidationError:
            status = LLMDeploymentStatus()
        return cls(
            owner=Owner(meta["namespace"], meta["name"], meta["uid"]),
            generation=generation,
            resource_version=meta["resourceVersion"],
            created=meta["creationTimestamp"],
            deleting=bool(meta.get("deletionTimestamp")),
            spec=spec,
            problem=problem,
            status=status,
            raw_status=raw,
            model_key=key,
            retry=_short(meta, RETRY),
            replan=_short(meta, REPLAN),
        )


def _short(meta: Mapping[str, Any], annotation: str) -> str:
    """As much of an annotation as status keeps."""
    return str((meta.get("annotations") or {}).get(annotation, ""))[:253]


def _spec(obj: Mapping[str, Any]) -> tuple[LLMDeploymentSpec | None, str]:
    """The spec, or what is wrong with it."""
    try:
        return LLMDeploymentSpec.model_validate(obj.get("spec") or {}), ""
    except ValidationError as error:
        return None, sentence(error, "spec")


def sentence(error: ValidationError, root: str) -> str:
    """The first fault in words: field, what was expected, what was found."""
    first = error.errors()[0]
    where = ".".join([root, *(str(part) for part in first["loc"])])
    return f"{where}: {first['msg']}, found {first.get('input')!r}"


def is_newer(version: str, than: str) -> bool:
    """Whether one resourceVersion is newer: they are comparable as numbers (KEP-5504). Anything else counts
    as newer, because taking an object twice is harmless and missing one is not."""
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than
