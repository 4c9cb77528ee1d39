"""kopf's part: LLMDeployment events, the liveness probe, start and stop. Nothing here decides anything.

Only low-level `on.event` is used: it marks what changed and lets the actor look at what is. kopf's high-level
handlers react to differences between two events, keep their progress in annotations and their retries on a
fixed clock, which is the wrong kind of memory for a planner.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from plimsoll.api.v1alpha1 import GROUP, PLURAL, VERSION
from plimsoll.cluster.state import ClusterState
from plimsoll.health import Heartbeat


def registry(
    state: ClusterState,
    heartbeat: Heartbeat,
    start: Callable[[], None],
    stop: Callable[[], None],
) -> kopf.OperatorRegistry:
    """All that kopf is asked to do."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=handlers)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        configured(settings)
        start()

    @kopf.on.cleanup(registry=handlers)
    def cleanup(**_: Any) -> None:
        stop()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def seen(event: Any, **_: Any) -> None:
        # Objects of kopf's first list come without a type.
        state.resources.apply(event.get("type") or "ADDED", event["object"])

    @kopf.on.probe(id="planner", registry=handlers)
    def planner(**_: Any) -> str:
        if problem := heartbeat.problem():
            # Any other exception would leave the probe's request hanging.
            raise kopf.PermanentError(problem)
        return "alive"

    return handlers


class NothingKept(kopf.DiffBaseStorage):
    """kopf copies the object of every event, twice and deeply, to compare it with the last one handled. Only
    handlers of differences read that, and there is none."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class Patience:
    """Pauses between kopf's attempts at a request: it ends the whole operator when they are used up, and an
    API server may be away for longer than any list of them."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 2, 4), itertools.repeat(8))


def configured(settings: kopf.OperatorSettings) -> None:
    """kopf as a thin shell: no posting, no peering, watches that cannot fall silent."""
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = Patience()
    settings.execution.max_workers = 4
    settings.persistence.diffbase_storage = NothingKept()
