"""A MemoryProfile as the operator keeps it in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from plimsoll.api.v1alpha1.profile import (
    PROFILE_KIND,
    MemoryProfile,
    MemoryProfileSpec,
    MemoryProfileStatus,
)
from plimsoll.cluster.resource import sentence

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What an object says, and which version of it."""

    namespace: str
    name: str
    spec: MemoryProfileSpec | None
    """None: it cannot be read, and `problem` tells why."""
    status: MemoryProfileStatus = field(default_factory=MemoryProfileStatus)
    problem: str = ""
    resource_version: str = ""
    """Empty: not stored yet."""
    uid: str = ""

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Profile:
        """Never fails: what cannot be read is kept with its problem, so that it can be told."""
        meta = obj["metadata"]
        key = meta["namespace"], meta["name"]
        version, uid = meta.get("resourceVersion", ""), meta.get("uid", "")
        try:
            found = MemoryProfile.model_validate({"spec": obj.get("spec"), "status": obj.get("status") or {}})
        except ValidationError as error:
            problem = sentence(error, PROFILE_KIND)
            return cls(*key, None, problem=problem, resource_version=version, uid=uid)
        return cls(*key, found.spec, found.status, resource_version=version, uid=uid)
