"""Reflectors, the state they feed, and the trigger: what is known, when it changes, and when planning
wakes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiClient
from tests.unit.cluster.world import cpu_node

from plimsoll.cluster.informer import Reflector
from plimsoll.cluster.kube import (
    NODES,
    AlreadyExists,
    Conflict,
    Gone,
    Kube,
    NotFound,
    Page,
    Refused,
    Unavailable,
    error_of,
)
from plimsoll.cluster.state import ClusterState
from plimsoll.cluster.trigger import Debounce, Trigger


class Script:
    """A source that answers from a list: lists of objects, lists of events, or exceptions."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def pages(self) -> Iterator[Page]:
        """One chunk for each object."""
        self.asked.append("list")
        yield Page([], "10")
        for one in self._next():
            yield Page([one], "10")

    def watch(self, resource_version: str) -> Iterator[dict[str, Any]]:
        self.asked.append(f"watch {resource_version}")
        yield from self._next()

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def node(name: str, version: int = 1, **more: str) -> dict[str, Any]:
    found = cpu_node(name, **more)
    found["metadata"]["resourceVersion"] = str(version)
    return found


def follow(*answers: Any) -> tuple[ClusterState, Script, list[float]]:
    """Run a reflector over a script until it is read to its end."""
    state = ClusterState(on_change=lambda: None)
    script = Script(*answers)
    pauses: list[float] = []
    reflector: Reflector

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if not script.answers:
            reflector.stop()

    reflector = Reflector("nodes", script, state.nodes, pause=pause)
    reflector.run()
    return state, script, pauses


def names(state: ClusterState) -> list[str]:
    return sorted(found.name for found in state.snapshot().nodes)


END: list[Any] = []
"""A watch that ends without an event."""


def test_a_list_and_then_changes() -> None:
    events = [
        {"type": "ADDED", "object": node("c", 11)},
        {"type": "DELETED", "object": node("a", 12)},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "99"}}},
    ]
    state, script, _ = follow([node("a"), node("b")], events, END)
    assert names(state) == ["b", "c"]
    assert script.asked == ["list", "watch 10", "watch 99"]


def test_what_was_deleted_while_the_watch_was_down_leaves_no_ghost() -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    state, script, pauses = follow([node("a"), node("b")], [gone], [node("b")], END)
    assert names(state) == ["b"]
    assert script.asked == ["list", "watch 10", "list", "watch 10"]
    assert len(pauses) == 1, "a fresh list after 410 waits for nothing"


@pytest.mark.parametrize(
    "failure",
    [Unavailable("connection reset"), Refused("forbidden", 403), ValueError("an object nobody expected")],
)
def test_failures_are_survived_with_growing_pauses(failure: Exception) -> None:
    state, _, pauses = follow(failure, failure, failure, [node("a")], END)
    assert names(state) == ["a"]
    steps = (0.5, 1.0, 2.0)
    assert all(step / 2 <= pause <= step for step, pause in zip(steps, pauses, strict=False))
    assert len(pauses) >= len(steps)


def test_a_broken_watch_goes_on_where_it_was() -> None:
    class Breaks(Script):
        def watch(self, resource_version: str) -> Iterator[dict[str, Any]]:
            yield from super().watch(resource_version)
            if len(self.answers) == 1:
                raise Unavailable("connection reset")

    state = ClusterState(on_change=lambda: None)
    script = Breaks([node("a")], [{"type": "ADDED", "object": node("b", 11)}], END)
    reflector = Reflector(
        "nodes", script, state.nodes, pause=lambda _: None if script.answers else reflector.stop()
    )
    reflector.run()
    assert script.asked == ["list", "watch 10", "watch 11"]


def test_synced_only_after_the_first_list() -> None:
    state = ClusterState(on_change=lambda: None)
    reflector = Reflector("nodes", Script([node("a")], END), state.nodes, pause=lambda _: None)
    assert not reflector.synced
    reflector.step()
    assert reflector.synced


def test_a_heartbeat_wakes_nobody() -> None:
    calls: list[int] = []
    state = ClusterState(on_change=lambda: calls.append(1))
    state.nodes.replace([node("a")])
    assert len(calls) == 1
    beaten = node("a", 2)
    beaten["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-11-23T04:00:00Z"
    state.nodes.apply("MODIFIED", beaten)
    state.nodes.apply("DELETED", node("never-seen"))
    assert len(calls) == 1
    state.nodes.apply("MODIFIED", node("a", 3, memory="1Gi"))
    assert len(calls) == 2


def resource(version: int, *, uid: str = "u", replicas: int = 1) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "small",
            "namespace": "models",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-23T04:00:00Z",
        },
        "spec": {"model": {"huggingFace": {"repo": "acme/small"}}, "replicas": replicas},
    }


def replicas(state: ClusterState) -> int | None:
    found = state.snapshot().resources.get(("models", "small"))
    return found.spec.replicas if found and found.spec else None


def test_the_newest_version_of_a_resource_wins_whatever_the_order() -> None:
    state = ClusterState(on_change=lambda: None)
    state.resources.apply("ADDED", resource(7, replicas=7))
    state.resources.apply("MODIFIED", resource(5, replicas=5))
    assert replicas(state) == 7
    state.resources.replace([resource(6, replicas=6)])
    assert replicas(state) == 7
    state.resources.learn(resource(8, replicas=8))
    assert replicas(state) == 8
    state.resources.replace([])
    assert replicas(state) is None


def test_a_resource_that_came_while_the_list_was_on_its_way_stays() -> None:
    state = ClusterState(on_change=lambda: None)
    state.resources.apply("ADDED", resource(9))
    state.resources.replace([], "8")
    assert replicas(state) == 1
    state.resources.replace([], "10")
    assert replicas(state) is None


def test_a_recreated_resource_is_not_deleted_by_the_old_ones_event() -> None:
    state = ClusterState(on_change=lambda: None)
    state.resources.apply("ADDED", resource(9, uid="new", replicas=2))
    state.resources.apply("DELETED", resource(8, uid="old"))
    assert replicas(state) == 2
    state.resources.apply("DELETED", resource(10, uid="new"))
    assert replicas(state) is None


def test_a_recreated_resource_is_not_replaced_by_what_is_still_told_of_the_old_one() -> None:
    state = ClusterState(on_change=lambda: None)
    state.resources.replace([resource(9, uid="new", replicas=2)], "9")
    state.resources.apply("MODIFIED", resource(7, uid="old"))
    state.resources.apply("DELETED", resource(8, uid="old"))
    assert replicas(state) == 2
    state.resources.apply("ADDED", resource(10, uid="newest", replicas=3))
    assert replicas(state) == 3


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (410, "Expired", Gone),
        (403, "Forbidden", Refused),
        (422, "Invalid", Refused),
        (429, "TooManyRequests", Unavailable),
        (500, "InternalError", Unavailable),
    ],
)
def test_answers_become_exceptions_with_the_servers_words(status: int, reason: str, kind: type) -> None:
    error = error_of(status, f'{{"reason": "{reason}", "message": "its own words"}}'.encode())
    assert type(error) is kind
    assert error.message == "its own words"


def test_an_answer_that_is_no_status_is_shown_as_it_is() -> None:
    assert "<html>" in error_of(502, b"<html>bad gateway</html>").message


@given(st.lists(st.floats(min_value=0.0, max_value=0.5), min_size=1, max_size=50))
def test_a_burst_becomes_one_round_soon_after_it_and_never_long_after_it_began(gaps: list[float]) -> None:
    debounce = Debounce(idle=0.1, longest=1.0)
    assert debounce.due() is None
    now = first = 100.0
    debounce.fire(now)
    for gap in gaps:
        now += gap
        debounce.fire(now)
    due = debounce.due()
    assert due is not None
    assert due <= first + 1.0
    assert due == pytest.approx(min(now + 0.1, first + 1.0))
    debounce.clear()
    assert debounce.due() is None


def test_the_trigger_waits_with_the_given_clock() -> None:
    times = iter([0.0, 0.0, 0.5])
    trigger = Trigger(monotonic=lambda: next(times))
    trigger.fire()
    assert trigger.wait(until=99.0), "due at 0.1, and by the clock's third reading it is 0.5"


def test_a_stopped_trigger_ends_every_wait() -> None:
    trigger = Trigger()
    trigger.stop()
    assert not trigger.wait(until=float("inf"))


class Streamed(Kube):
    """Answers every request with these bytes."""

    def __init__(self, *chunks: bytes) -> None:
        super().__init__(cast(ApiClient, None))
        self.chunks = chunks

    @contextlib.contextmanager
    def _open(self, *_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(stream=lambda _size: iter(self.chunks), data=b"".join(self.chunks))


def test_an_answer_that_is_no_json_is_asked_for_again() -> None:
    with pytest.raises(Unavailable, match="no JSON: <html>"):
        Streamed(b"<html>").get(NODES, None, "a")


@pytest.mark.parametrize(("status", "streams"), [(422, False), (400, False), (401, True), (403, True)])
def test_only_a_server_that_cannot_stream_lists_is_never_asked_to_again(
    status: int, *, streams: bool
) -> None:
    asked: list[str] = []

    class Refusing(Kube):
        @contextlib.contextmanager
        def _open(self, _method: str, _path: str, query: Any, *_: Any, **__: Any) -> Iterator[Any]:
            asked.append("stream" if "watch" in query else "chunk")
            if asked == ["stream"]:
                raise error_of(status, b"")
            page = {"items": [], "metadata": {"resourceVersion": "9"}}
            yield SimpleNamespace(stream=lambda _size: iter([LAST]), data=json.dumps(page).encode())

    kube = Refusing(cast(ApiClient, None))
    with contextlib.suppress(Refused):
        kube.list(NODES)
    assert kube.list(NODES) == ([], "9")
    assert asked[-1] == ("stream" if streams else "chunk")


ONE = b'{"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "7"}}}\n'
LAST = (
    b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9", '
    b'"annotations": {"k8s.io/initial-events-end": "true"}}}}\n'
)
TOO_MANY = b'{"type": "ERROR", "object": {"code": 429, "message": "too many requests"}}\n'


def test_a_streamed_list_is_whole_when_its_end_was_told() -> None:
    objects, version = Streamed(ONE[:20], ONE[20:] + LAST[:5], LAST[5:]).list(NODES)
    assert [obj["metadata"]["name"] for obj in objects] == ["a"]
    assert version == "9"


@pytest.mark.parametrize("rest", [(), (LAST[:-9],), (TOO_MANY,)], ids=["nothing", "half a line", "an error"])
def test_a_streamed_list_that_breaks_off_is_no_list(rest: tuple[bytes, ...]) -> None:
    with pytest.raises(Unavailable):
        Streamed(ONE, *rest).list(NODES)
