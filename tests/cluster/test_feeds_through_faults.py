"""One feed against the real API server, through a network that fails: the store ends as the server is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
from dev.cluster.description import Cluster
from kubernetes import client, config
from tests.cluster.api_proxy import ApiProxy

from plimsoll.cluster import informer
from plimsoll.cluster import kube as api
from plimsoll.cluster.informer import KubeSource, Reflector
from plimsoll.cluster.kube import Kind, Kube
from plimsoll.cluster.state import View

pytestmark = pytest.mark.cluster

MAPS = Kind("v1", "configmaps")
SECONDS = 30


class Feed:
    """ConfigMaps of one test, followed through the proxy and changed past it."""

    def __init__(self, proxy: ApiProxy, kube: Kube, namespace: str, wait_for: Callable[..., Any]) -> None:
        self._kube, self._namespace, self._wait_for = kube, namespace, wait_for
        self.view: View[str] = View(lambda obj: str(obj["data"]["value"]), RLock(), lambda: None)
        settings = client.Configuration()
        config.load_kube_config(str(proxy.kubeconfig), client_configuration=settings)
        settings.retries = False
        self.source = KubeSource(Kube(client.ApiClient(settings)), MAPS, f"test={namespace}")
        self.reflector = Reflector(f"maps-{namespace}", self.source, self.view)

    def put(self, name: str, value: str) -> None:
        body = {"metadata": {"name": name, "labels": {"test": self._namespace}}, "data": {"value": value}}
        body |= {"apiVersion": "v1", "kind": "ConfigMap"}
        self._kube.apply(MAPS, self._namespace, name, body, force=True)

    def delete(self, name: str) -> None:
        self._kube.delete(MAPS, self._namespace, name)

    def shows(self, **values: str) -> None:
        found = lambda: {name: value for (_, name), value in self.view.entries().items()}  # noqa: E731
        self.wait(lambda: found() == values, f"the store holds {values}", found)

    def wait(self, holds: Callable[[], object], what: str, show: Callable[[], object] | None = None) -> None:
        self._wait_for(holds, SECONDS, what, show)

    def listed(self) -> list[str]:
        """A list of its own."""
        return [obj["metadata"]["name"] for page in self.source.pages() for obj in page.items]

    def lists(self) -> float:
        from plimsoll import metrics

        return metrics.FEED_RELISTS.labels(self.reflector.name)._value.get()


@pytest.fixture
def proxy(cluster: Cluster, tmp_path: Path) -> Iterator[ApiProxy]:
    with ApiProxy(cluster.kubeconfig, tmp_path) as found:
        yield found


@pytest.fixture
def feed(
    proxy: ApiProxy,
    kube: Any,
    namespace: str,
    wait_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Feed]:
    """Listed, and watching."""
    monkeypatch.setattr(informer, "SILENCE_SECONDS", 1.0)
    found = Feed(proxy, Kube(kube), namespace, wait_for)
    found.put("a", "0")
    found.reflector.start()
    found.shows(a="0")
    found.put("a", "1")
    found.shows(a="1")
    yield found
    found.reflector.stop()
    proxy.cut()


def test_what_changed_during_an_outage_is_seen_after_it(proxy: ApiProxy, feed: Feed) -> None:
    feed.put("b", "1")
    feed.shows(a="1", b="1")
    proxy.tripwire = lambda _request: True
    proxy.cut()
    feed.delete("a")
    feed.put("b", "2")
    feed.put("c", "1")
    proxy.tripwire = None
    feed.shows(b="2", c="1")
    assert feed.lists() == 1, "the watch goes on where it was: nothing is listed again"


def test_a_place_in_the_stream_that_is_too_old_is_listed_again_and_leaves_no_ghost(
    proxy: ApiProxy, feed: Feed
) -> None:
    feed.put("b", "1")
    feed.shows(a="1", b="1")
    proxy.tripwire = lambda _request: True
    proxy.cut()
    feed.delete("a")
    feed.put("c", "1")
    too_old = [410]
    proxy.status = lambda request: too_old.pop() if too_old and "configmaps" in request.path else 0
    proxy.tripwire = None
    feed.shows(b="1", c="1")
    # Counted when the list is whole, which may be a moment after the store shows it.
    feed.wait(lambda: feed.lists() == 2, "everything was listed once more")


def test_a_watch_that_falls_silent_is_asked_for_anew(proxy: ApiProxy, feed: Feed) -> None:
    proxy.silent = True
    feed.put("b", "1")
    feed.delete("a")
    proxy.silent = False
    feed.put("c", "1")
    feed.shows(b="1", c="1")


@pytest.mark.parametrize("status", [410, 429, 500, 503])
def test_errors_in_place_of_a_watch_are_survived(proxy: ApiProxy, feed: Feed, status: int) -> None:
    left = [status] * 3
    proxy.status = lambda request: left.pop() if left and "configmaps" in request.path else 0
    proxy.cut()
    feed.put("b", "1")
    feed.delete("a")
    feed.shows(b="1")
    # A watch that was just being asked for when the connections were cut may live a little longer.
    feed.wait(lambda: not left, "all errors were met")
    feed.put("c", "1")
    feed.shows(b="1", c="1")


def test_a_server_without_streamed_lists_is_asked_in_chunks(
    proxy: ApiProxy, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "LIST_CHUNK", 2)
    feed.put("b", "1")
    feed.put("c", "1")
    assert feed.listed() == ["a", "b", "c"]
    refused = [422]
    proxy.status = lambda request: refused.pop() if refused and "configmaps" in request.path else 0
    assert feed.listed() == ["a", "b", "c"]
    assert not refused
