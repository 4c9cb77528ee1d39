"""Which copy of the operator may write: the one that holds a coordination.k8s.io Lease.

    standby ── nobody renewed for LEASE_SECONDS ──► leader ── renews every RETRY_SECONDS
       ▲                                               │
       └────── not renewed for WRITE_SECONDS ◄─────────┘   (it stops writing before anybody may take over)

All copies follow the cluster, so a take-over costs no list. Times are of the monotonic clock alone: a
standby measures how long it has seen no renewal, a leader how long ago it began its last one, and no clock of
one machine is compared with that of another. So a clock that jumps changes nothing, and a process that was
stopped and goes on finds its time over before its next write.

The election of the `kubernetes` package was rejected: it reads the wall clock, goes on for ever once started,
never gives the Lease back, and tells nobody between two renewals that the time is over. kopf's peering was
rejected: it is no lock.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from plimsoll import metrics
from plimsoll.cluster.kube import LEASES, AlreadyExists, Conflict, Kube, KubeError, NotFound

log = logging.getLogger(__name__)

NAME = "plimsoll-operator"
LEASE_SECONDS = 10.0
"""Without a renewal for this long, another copy takes over."""
WRITE_SECONDS = 7.0
"""A leader writes this long after it began its last renewal: requests on their way have the rest."""
RETRY_SECONDS = 2.0
READ_SECONDS = 4.0
"""For each of its requests, so that one that hangs leaves time for another."""
RELEASED_SECONDS = 1
"""The duration that a released Lease carries; the API admits no zero."""

Object = dict[str, Any]


def anew() -> str:
    """An identity that nobody had before: the host's name, for people, and a random part."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


class Leader:
    """Tries to hold the Lease, in a thread of its own. `on_change` is called when it begins to lead.

    `identity` tells copies apart. A pod's container that starts again has the same one, and goes on at once.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        identity: str,
        on_change: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube.limited(READ_SECONDS)
        self._namespace, self._identity = namespace, identity
        self._on_change, self._monotonic, self._clock = on_change, monotonic, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)
        self._renewed_at: float | None = None
        self._seen: tuple[str, str, int] | None = None
        """Holder, renewal and transitions of the record as it was last seen."""
        self._seen_at = 0.0
        """Since when it is the same."""
        self._problem = ""
        self.term = 0
        """How often this copy began to lead."""

    def leading(self) -> bool:
        """Whether this copy may write, now."""
        renewed = self._renewed_at
        return renewed is not None and self._monotonic() < renewed + WRITE_SECONDS

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Gives the Lease back, so that another copy need not wait. Nothing may be written afterwards."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(LEASE_SECONDS)
        if self.leading():
            self._renewed_at = None
            self._release()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step()
                self._problem = ""
            except KubeError as error:
                self._tell(f"the Lease {self._namespace}/{NAME} cannot be kept: {error.message}")
            except Exception:
                log.exception("election failed, trying again")
            metrics.LEADING.set(self.leading())
            self._stopping.wait(RETRY_SECONDS)

    def step(self) -> None:
        """One attempt to take the Lease, or to renew it."""
        began = self._monotonic()
        try:
            lease = self._kube.get(LEASES, self._namespace, NAME)
        except NotFound:
            if not self._create():
                return
        else:
            if not self._may_take(lease, began):
                self._renewed_at = None
                return
            try:
                self._kube.replace(LEASES, self._namespace, NAME, self._taken(lease))
            except Conflict:
                return  # another copy was quicker
            self._count((lease.get("spec") or {}).get("holderIdentity") or "")
        was_leading = self.leading()
        self._renewed_at = began
        if not was_leading:
            self.term += 1
            log.info("leading as %s, term %d", self._identity, self.term)
            self._on_change()

    def _may_take(self, lease: Object, now: float) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        record = (holder, spec.get("renewTime") or "", int(spec.get("leaseTransitions") or 0))
        if record != self._seen:
            self._seen, self._seen_at = record, now
        if holder in ("", self._identity):
            return True
        return now >= self._seen_at + float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    def _taken(self, lease: Object) -> Object:
        spec = lease.get("spec") or {}
        mine = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0) + (not mine)
        acquired = spec.get("acquireTime") if mine else None
        return lease | {"spec": self._spec(self._identity, transitions, acquired)}

    def _count(self, before: str) -> None:
        if before not in ("", self._identity):
            metrics.TAKEOVERS.inc()
            log.info("took over from %s", before)

    def _create(self) -> bool:
        body = {
            "apiVersion": LEASES.group_version,
            "kind": "Lease",
            "metadata": {"name": NAME, "namespace": self._namespace},
            "spec": self._spec(self._identity, 0, None),
        }
        try:
            self._kube.create(LEASES, self._namespace, body)
        except AlreadyExists:
            return False
        return True

    def _release(self) -> None:
        try:
            lease = self._kube.get(LEASES, self._namespace, NAME)
            spec = lease.get("spec") or {}
            if spec.get("holderIdentity") == self._identity:
                free = spec | {"holderIdentity": "", "leaseDurationSeconds": RELEASED_SECONDS}
                self._kube.replace(LEASES, self._namespace, NAME, lease | {"spec": free})
        except KubeError as error:
            log.info("the Lease is not given back, it ends by itself: %s", error.message)

    def _spec(self, holder: str, transitions: int, acquired: str | None) -> Object:
        now = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _tell(self, problem: str) -> None:
        """Once, not every two seconds."""
        if problem != self._problem:
            log.warning(problem)
            self._problem = problem
