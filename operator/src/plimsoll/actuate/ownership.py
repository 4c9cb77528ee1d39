"""Names, labels and owner references of everything the operator makes.

Children are owned by the LLMDeployment directly and carry no finalizer, so the garbage collector removes them
all when the resource goes, also while the operator is away.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from plimsoll.api.v1alpha1 import API_VERSION, KIND

MANAGED_BY = "app.kubernetes.io/managed-by"
NAME = "app.kubernetes.io/name"
DEPLOYMENT = "plimsoll.dev/deployment"
REVISION = "plimsoll.dev/revision"
REPLICA = "plimsoll.dev/replica"
STAGE = "plimsoll.dev/stage"
ATTEMPT = "plimsoll.dev/attempt"
PLAN = "plimsoll.dev/plan"
"""Annotation on worker pods: the plan they were started from, without places. A lost status is rebuilt from
it."""
MODEL_KEY = "plimsoll.dev/model-key"
"""Label on inspect pods: which source they read."""
RETRY = "plimsoll.dev/retry"
"""Annotation on an LLMDeployment: a new value forgets failures, restarts and exclusions."""
REPLAN = "plimsoll.dev/replan"
"""Annotation on an LLMDeployment: a new value plans anew and rolls the new plan out."""
PLAN_GATE = "plimsoll.dev/plan"
"""Scheduling gate of the pods of one replica until all of them exist."""

OPERATOR = "plimsoll"
WORKER = "plimsoll-worker"
INSPECT = "plimsoll-inspect"
OWN_SELECTOR = f"{MANAGED_BY}={OPERATOR}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The LLMDeployment that children belong to."""

    namespace: str
    name: str
    uid: str

    def reference(self) -> dict[str, Any]:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def labels(owner: Owner, component: str, **more: str) -> dict[str, str]:
    """Labels that every child carries; `more` by keyword is added with the operator's prefix."""
    return {
        NAME: component,
        MANAGED_BY: OPERATOR,
        DEPLOYMENT: owner.name,
        **{f"plimsoll.dev/{key.replace('_', '-')}": value for key, value in more.items()},
    }


def metadata(owner: Owner, name: str, own_labels: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": own_labels,
        "ownerReferences": [owner.reference()],
        **more,
    }


def worker_selector(owner: Owner) -> dict[str, str]:
    """The pods that count as replicas and answer requests: stage 0 of each."""
    return {NAME: WORKER, DEPLOYMENT: owner.name, STAGE: "0"}


def selector_text(selector: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


def digest(content: object, length: int = 8) -> str:
    """Hexadecimal digits of a hash over JSON content, the same on every machine."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:length]
