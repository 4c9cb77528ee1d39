"""A reflector: keeps one store equal to what the API server has, through every kind of interruption.

list → replace → watch → (410: list again, and the store compares) → …  kopf's indexes were rejected: they
start up in quadratic time and keep objects that were deleted while the watch was down; for a planner such a
ghost is a GPU lost for ever. The client's own SharedInformer was rejected because it keeps whole objects and
one odd object fails its list.

A watch that falls silent is asked for anew, because the server promises a bookmark about once a minute.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from plimsoll import metrics
from plimsoll.cluster.kube import Gone, Kind, Kube, KubeError, Page, error_of

log = logging.getLogger(__name__)

WATCH_SECONDS = (240, 300)
"""The server ends a watch after a time drawn from here, so that not all feeds come back at once."""
SILENCE_SECONDS = 90.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
"""An API server that was away for a minute is found again so soon; a few feeds that ask are no load."""
UNSYNCED_WARNING_SECONDS = 30.0

Object = dict[str, Any]


class Store(Protocol):
    """Where a reflector puts what it reads."""

    def replace(self, objects: Iterable[Object]) -> None:
        """The whole truth at one moment: what is not in it is gone. `objects` are read from the API server
        while they are asked for."""

    def apply(self, event: str, obj: Object) -> None:
        """One change: ADDED, MODIFIED or DELETED."""


class Source(Protocol):
    """List and watch of one kind."""

    def pages(self) -> Iterator[Page]:
        """The list in chunks."""

    def watch(self, resource_version: str) -> Iterator[Object]: ...


@dataclass(frozen=True)
class KubeSource:
    kube: Kube
    kind: Kind
    selector: str = ""

    def pages(self) -> Iterator[Page]:
        return self.kube.pages(self.kind, selector=self.selector)

    def watch(self, resource_version: str) -> Iterator[Object]:
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311
        return self.kube.watch(
            self.kind,
            resource_version,
            seconds=seconds,
            silence_seconds=SILENCE_SECONDS,
            selector=self.selector,
        )


NOT_SERVED = ""
"""In place of a resourceVersion."""


@dataclass(frozen=True)
class OptionalSource(KubeSource):
    """A kind that the API server may not serve, or not yet: empty until it does, asked for now and then."""

    def pages(self) -> Iterator[Page]:
        return super().pages() if self.kube.serves(self.kind) else iter([Page([], NOT_SERVED)])

    def watch(self, resource_version: str) -> Iterator[Object]:
        if resource_version != NOT_SERVED:
            yield from super().watch(resource_version)
        elif self.kube.serves(self.kind):
            raise Gone(f"{self.kind.plural} are served now")


class Backoff:
    """Doubling pauses with jitter: between half and all of the step."""

    def __init__(
        self, first: float = FIRST_BACKOFF_SECONDS, longest: float = LONGEST_BACKOFF_SECONDS
    ) -> None:
        self._first, self._longest, self._step = first, longest, first

    def reset(self) -> None:
        self._step = self._first

    def next(self) -> float:
        step, self._step = self._step, min(self._step * 2, self._longest)
        return step * random.uniform(0.5, 1.0)  # noqa: S311


class Reflector:
    """Runs in a thread of its own. `pause(seconds)` waits between attempts and is injected for tests."""

    def __init__(
        self, name: str, source: Source, store: Store, *, pause: Callable[[float], object] | None = None
    ) -> None:
        self.name = name
        self._source, self._store = source, store
        self._stopping = threading.Event()
        self._pause = pause or self._stopping.wait
        self._backoff = Backoff()
        self._version: str | None = None
        self._started = time.monotonic()
        self._synced = threading.Event()

    @property
    def synced(self) -> bool:
        """The feed has been listed at least once; what the store holds was true at some moment."""
        return self._synced.is_set()

    def start(self) -> None:
        # A daemon thread: a watch blocks in a read for up to SILENCE_SECONDS, which no shutdown should wait
        # for.
        threading.Thread(target=self.run, name=f"feed-{self.name}", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step()
            except Gone as error:
                log.info("feed %s: listing again: %s", self.name, error)
                self._version = None
            except KubeError as error:
                self._report(error)
                self._pause(self._backoff.next())
            except Exception:
                # The store or an object broke the feed; a fresh list is the way back, and silence would be a
                # lie.
                log.exception("feed %s: failed, listing again", self.name)
                self._version = None
                self._pause(self._backoff.next())

    def step(self) -> None:
        """List if need be, then one watch to its end."""
        if self._version is None:
            self._version = self._list()
            self._synced.set()
            metrics.FEED_SYNCED.labels(self.name).set(1)
            metrics.FEED_RELISTS.labels(self.name).inc()
        heard = False
        for event in self._source.watch(self._version):
            heard = True
            self._take(event)
            self._backoff.reset()
            if self._stopping.is_set():
                return
        if not heard:
            # A server that ends watches at once must not be asked in a tight loop.
            self._pause(self._backoff.next())

    def _list(self) -> str:
        """Fill the store; the resourceVersion of the list."""
        version = ""

        def objects() -> Iterator[Object]:
            nonlocal version
            for page in self._source.pages():
                version = page.version
                yield from page.items

        self._store.replace(objects())
        return version

    def _take(self, event: Object) -> None:
        kind, obj = event.get("type", ""), event.get("object") or {}
        if kind == "ERROR":
            code = int(obj.get("code") or 500)
            # Whatever the error was, the place in the stream is lost.
            self._version = None
            raise error_of(code, json.dumps(obj).encode())
        if kind != "BOOKMARK":
            self._store.apply(kind, obj)
        self._version = obj["metadata"]["resourceVersion"]

    def _report(self, error: KubeError) -> None:
        late = not self.synced and time.monotonic() - self._started > UNSYNCED_WARNING_SECONDS
        log.log(logging.WARNING if late else logging.INFO, "feed %s: %s", self.name, error.message)
