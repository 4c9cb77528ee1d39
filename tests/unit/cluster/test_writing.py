"""What a round waits for, and what gives way: pods first, then progress, then Services and events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from plimsoll.actuate.apply import Ending, Executor, Result
from plimsoll.actuate.ownership import Owner
from plimsoll.api.v1alpha1 import Condition, LLMDeploymentStatus
from plimsoll.cluster.calm import RUSH_SECONDS, Calm
from plimsoll.cluster.observed import (
    Action,
    ApplyObject,
    CreatePod,
    EmitEvent,
    Memory,
    Observed,
    Outcome,
    WriteStatus,
)
from plimsoll.cluster.state import ClusterView
from plimsoll.cluster.writing import STATUS_SECONDS, UNDER_WAY_SECONDS, Writing

VIEW = cast(ClusterView, None)
PROGRESS = WriteStatus(LLMDeploymentStatus(ready_replicas=1))
POD = CreatePod({"metadata": {"name": "pod"}}, pinned=True)
EVENT = EmitEvent("Ready", "it answers")


class Recording:
    """In place of the executor: writes down what it is given, and ends as it is told."""

    def __init__(self) -> None:
        self.done: list[tuple[str, type]] = []
        self.ending = Ending.DONE

    def carry_out(
        self, one: Observed, actions: Iterable[Action], memory: Memory, view: ClusterView
    ) -> Result:
        self.done += [(one.resource.uid, type(action)) for action in actions]
        return Result(self.ending, memory)


class Setting:
    """A Writing with a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self.woken = 100.0, 0
        self.executor = Recording()
        self.calm = Calm(lambda: self.now)
        self.writing = Writing(
            cast(Executor, self.executor), self._wake, self.calm, monotonic=lambda: self.now
        )

    def _wake(self) -> None:
        self.woken += 1

    def round(
        self, before: LLMDeploymentStatus | None = None, age: float = 0.0, **actions: tuple[Action, ...]
    ) -> list[tuple[str, type]]:
        """What one round wrote, by resource, having looked at the cluster `age` seconds ago."""
        self.executor.done.clear()
        steps = [(resource(uid, before), Outcome(given, Memory())) for uid, given in actions.items()]
        self.writing.carry_out(steps, VIEW, self.now - age)
        return list(self.executor.done)


def resource(uid: str, before: LLMDeploymentStatus | None = None) -> Observed:
    inside = SimpleNamespace(uid=uid, owner=Owner("models", uid, uid), status=before or LLMDeploymentStatus())
    return cast(Observed, SimpleNamespace(resource=inside))


def status(**found: bool) -> LLMDeploymentStatus:
    """With these conditions True or False."""
    return LLMDeploymentStatus(
        conditions=[
            Condition(
                type=kind,
                status="True" if true else "False",
                observed_generation=1,
                last_transition_time="2026-11-23T00:00:00Z",
                reason="Test",
                message="",
            )
            for kind, true in found.items()
        ]
    )


@pytest.fixture
def setting() -> Iterator[Setting]:
    found = Setting()
    yield found
    found.writing.close()


def test_progress_is_written_at_most_every_other_second(setting: Setting) -> None:
    assert setting.round(a=(PROGRESS, EVENT)) == [("a", WriteStatus), ("a", EmitEvent)]
    setting.now += STATUS_SECONDS - 0.1
    assert setting.round(a=(PROGRESS, EVENT)) == []
    assert setting.writing.due() == [pytest.approx(setting.now + 0.1)]
    setting.now += 0.2
    assert setting.round(a=(PROGRESS, EVENT)) == [("a", WriteStatus), ("a", EmitEvent)]


@pytest.mark.parametrize(
    ("degraded", "ready", "seconds"),
    [(False, False, UNDER_WAY_SECONDS), (True, False, STATUS_SECONDS), (False, True, STATUS_SECONDS)],
    ids=["under way", "something is wrong", "done"],
)
def test_a_start_that_merely_goes_on_is_told_later_than_its_end(
    setting: Setting, *, degraded: bool, ready: bool, seconds: float
) -> None:
    starts = status(Progressing=True, Degraded=False)
    goes_on = (WriteStatus(status(Progressing=not ready, Degraded=degraded)),)
    assert setting.round(a=goes_on, before=starts)
    setting.now += seconds - 0.1
    assert setting.round(a=goes_on, before=starts) == []
    assert setting.writing.due() == [pytest.approx(setting.now + 0.1)]
    setting.now += 0.2
    assert setting.round(a=goes_on, before=starts) == [("a", WriteStatus)]


def test_progress_gives_way_to_pods_of_others_but_not_for_ever(setting: Setting) -> None:
    assert setting.round(a=(PROGRESS,), b=(POD,)) == [("b", CreatePod)]
    setting.now += RUSH_SECONDS
    assert ("a", WriteStatus) in setting.round(a=(PROGRESS,), b=(POD,))


def test_what_waited_and_is_no_longer_to_be_written_makes_no_round_due(setting: Setting) -> None:
    setting.round(a=(PROGRESS,))
    assert setting.round(a=(PROGRESS,)) == []
    assert setting.writing.due()
    setting.round(a=())
    assert setting.writing.due() == []


def test_a_failed_write_that_is_no_longer_wanted_makes_no_round_due_after_its_pause(setting: Setting) -> None:
    setting.executor.ending = Ending.FAILED
    setting.round(a=(POD,))
    [until] = setting.writing.due()
    setting.round(a=())
    assert setting.writing.due() == [until]
    setting.now = until
    setting.round(a=())
    assert setting.writing.due() == []


def test_a_pod_waits_for_nothing(setting: Setting) -> None:
    setting.round(a=(PROGRESS,))
    assert setting.round(a=(PROGRESS, POD)) == [("a", WriteStatus), ("a", CreatePod)]


def test_a_resource_whose_writes_failed_is_left_alone_for_longer_each_time(setting: Setting) -> None:
    setting.executor.ending = Ending.FAILED
    pauses = []
    for _ in range(4):
        assert setting.round(a=(POD,))
        [until] = setting.writing.due()
        pauses.append(until - setting.now)
        assert setting.round(a=(POD,)) == []
        setting.now = until
    assert pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("ending", [Ending.OUTDATED, Ending.REFUSED])
def test_a_resource_that_changed_meanwhile_is_looked_at_again(setting: Setting, ending: Ending) -> None:
    setting.executor.ending = ending
    setting.round(a=(POD,))
    assert setting.woken == 1


def test_services_follow_when_the_rush_is_over(setting: Setting, wait_for: Callable[..., Any]) -> None:
    service = ApplyObject({"kind": "Service", "metadata": {"name": "a"}}, "it is missing", exists=False)
    assert setting.round(a=(POD, service)) == [("a", CreatePod)]
    assert setting.round(b=()) == [], "a round without decisions: it is calm"
    wait_for(lambda: ("a", ApplyObject) in setting.executor.done, 10, "the Service is applied")


def test_progress_is_told_once_the_services_stand(setting: Setting, wait_for: Callable[..., Any]) -> None:
    service = ApplyObject({"kind": "Service", "metadata": {"name": "a"}}, "it is missing", exists=False)
    setting.round(a=(POD, service), b=(POD,))
    setting.now += STATUS_SECONDS
    assert setting.round(a=(PROGRESS,), b=(POD,)) == [("b", CreatePod)]
    setting.calm.tell(urgent=False)
    wait_for(lambda: setting.woken, 10, "the Services stand, and the next round is asked for")
    setting.now += STATUS_SECONDS
    assert setting.round(a=(PROGRESS,)) == [("a", WriteStatus)]


def test_a_look_that_is_older_than_the_services_tells_nothing(
    setting: Setting, wait_for: Callable[..., Any]
) -> None:
    service = ApplyObject({"kind": "Service", "metadata": {"name": "a"}}, "it is missing", exists=False)
    setting.round(a=(POD, service))
    setting.round(a=())
    wait_for(lambda: ("a", ApplyObject) in setting.executor.done, 10, "the Service is applied")
    setting.now += STATUS_SECONDS
    assert setting.round(a=(PROGRESS,), age=STATUS_SECONDS + 1) == []
    wait_for(lambda: setting.woken, 10, "another look is asked for")
    assert setting.round(a=(PROGRESS,)) == [("a", WriteStatus)]


def test_a_start_says_nothing_of_services_that_are_still_being_written(
    setting: Setting, wait_for: Callable[..., Any]
) -> None:
    service = ApplyObject({"kind": "Service", "metadata": {"name": "a"}}, "it is missing", exists=False)
    starts, goes_on = status(Progressing=True), (WriteStatus(status(Progressing=True)),)
    fails = (WriteStatus(status(Progressing=True, Degraded=True)),)
    setting.round(a=(POD, service))
    assert setting.round(a=goes_on, b=(POD,), before=starts) == [("b", CreatePod)]
    setting.now += RUSH_SECONDS + 1
    assert setting.round(a=goes_on, b=(POD,), before=starts) == [("b", CreatePod)]
    assert ("a", WriteStatus) in setting.round(a=fails, b=(POD,), before=starts), (
        "trouble is told in any case"
    )


def test_a_rush_ends_for_those_who_waited_long_enough() -> None:
    calm = Calm(time.monotonic)
    calm.tell(urgent=True)
    began = time.monotonic()
    calm.wait(since=began - RUSH_SECONDS + 0.05)
    assert 0.04 <= time.monotonic() - began < RUSH_SECONDS / 2
