"""Taints against tolerations, as the scheduler and the taint eviction controller read them.

Rules: kubernetes `staging/src/k8s.io/component-helpers/scheduling/corev1/helpers.go` and
`pkg/apis/core/v1/toleration.go`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from plimsoll.inventory.views import Taint

NO_SCHEDULE, NO_EXECUTE = "NoSchedule", "NoExecute"


class TolerationLike(Protocol):
    """A toleration of any origin: the resource's own type, or one built for a pod."""

    @property
    def key(self) -> str: ...
    @property
    def operator(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def effect(self) -> str: ...


def tolerates(toleration: TolerationLike, taint: Taint) -> bool:
    """An empty effect matches every effect, an empty key with operator Exists every key."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    return bool(toleration.key) and toleration.value == taint.value


def untolerated(
    taints: Iterable[Taint],
    tolerations: Iterable[TolerationLike],
    effects: tuple[str, ...] = (NO_SCHEDULE, NO_EXECUTE),
) -> Taint | None:
    """The first taint that keeps a pod away, or None. PreferNoSchedule keeps none away."""
    accepted = tuple(tolerations)
    for taint in taints:
        if taint.effect in effects and not any(tolerates(toleration, taint) for toleration in accepted):
            return taint
    return None
