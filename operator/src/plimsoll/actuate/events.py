"""Events as `kubectl describe` shows them: few, specific, told once.

kopf's own posting was rejected: it makes a new event for every call and leaves the action empty.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from plimsoll.actuate.ownership import Owner, digest
from plimsoll.api.v1alpha1 import API_VERSION, KIND

CONTROLLER = "plimsoll.dev/operator"
MAX_NOTE = 1024
"""Of events.k8s.io/v1, in bytes."""


def event(
    owner: Owner, reason: str, note: str, now: datetime, instance: str, *, warning: bool, kind: str = KIND
) -> dict[str, Any]:
    """An event about an LLMDeployment, or another kind of ours. `reason` is CamelCase and becomes the action
    too."""
    moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    # The name follows from what is told and when, so that a repeated create is refused and not a second
    # event.
    name = f"{owner.name}.{digest([owner.uid, reason, note, moment], 16)}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": owner.namespace},
        "eventTime": moment,
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128] or "plimsoll",
        "action": reason,
        "reason": reason,
        "type": "Warning" if warning else "Normal",
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": owner.uid,
        },
        "note": _shortened(note),
    }


def _shortened(note: str) -> str:
    text = note.encode()
    return note if len(text) <= MAX_NOTE else text[: MAX_NOTE - 4].decode(errors="ignore") + "…"
