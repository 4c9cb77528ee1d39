"""The Lease on the real API server: who may write, with clocks that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plimsoll.cluster.kube import LEASES, Kube, NotLeading
from plimsoll.cluster.leader import LEASE_SECONDS, NAME, RETRY_SECONDS, WRITE_SECONDS, Leader

pytestmark = pytest.mark.cluster


class Time:
    """One machine's monotonic clock for all copies, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def copy(kube: Any, namespace: str, time: Time) -> Callable[..., Leader]:
    """`copy("a", ahead=timedelta())`: a copy of the operator whose wall clock is ahead of the others'."""

    def make(identity: str, *, ahead: timedelta = timedelta()) -> Leader:
        clock = lambda: datetime.now(UTC) + ahead  # noqa: E731
        return Leader(Kube(kube), namespace, identity, lambda: None, monotonic=time, clock=clock)

    return make


def test_the_first_leads_and_the_second_waits(copy: Callable[..., Leader], time: Time) -> None:
    first, second = copy("a"), copy("b")
    for _ in range(10):
        first.step()
        second.step()
        assert (first.leading(), second.leading()) == (True, False)
        time.now += RETRY_SECONDS
    assert first.term == 1


def test_a_lost_leader_stops_writing_before_another_copy_takes_over(
    copy: Callable[..., Leader], time: Time
) -> None:
    first, second = copy("a"), copy("b")
    first.step()
    second.step()
    lost_at = time.now
    while not second.leading():
        time.now += 0.5
        second.step()
        assert not (first.leading() and second.leading())
    assert WRITE_SECONDS < time.now - lost_at <= LEASE_SECONDS + 0.5
    first.step()
    assert not first.leading()
    assert second.term == 1


def test_who_led_before_and_comes_back_waits_like_anybody(copy: Callable[..., Leader], time: Time) -> None:
    first, second = copy("a"), copy("b")
    first.step()
    second.step()
    time.now += LEASE_SECONDS
    second.step()
    first.step()
    assert (first.leading(), second.leading()) == (False, True)
    time.now += LEASE_SECONDS
    first.step()
    assert first.leading()
    assert first.term == 2, "what it remembers of its first term is old"


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)], ids=["ahead", "behind"])
def test_wall_clocks_that_differ_by_an_hour_change_nothing(
    copy: Callable[..., Leader], time: Time, ahead: timedelta
) -> None:
    first, second = copy("a"), copy("b", ahead=ahead)
    for _ in range(10):
        first.step()
        second.step()
        assert (first.leading(), second.leading()) == (True, False)
        time.now += RETRY_SECONDS


def test_the_same_identity_goes_on_at_once(copy: Callable[..., Leader]) -> None:
    copy("a").step()
    restarted = copy("a")
    restarted.step()
    assert restarted.leading()


def test_a_lease_that_is_given_back_is_taken_at_once(
    copy: Callable[..., Leader], kube: Any, namespace: str
) -> None:
    first, second = copy("a"), copy("b")
    first.step()
    first.stop()
    assert not first.leading()
    second.step()
    assert second.leading()
    assert Kube(kube).get(LEASES, namespace, NAME)["spec"]["leaseTransitions"] == 1


def test_a_copy_that_does_not_lead_sends_no_write(
    copy: Callable[..., Leader], kube: Any, namespace: str
) -> None:
    copy("a").step()
    standby = copy("b")
    standby.step()
    guarded = Kube(kube).guarded(standby.leading)
    maps = LEASES.__class__("v1", "configmaps")
    body = {"metadata": {"name": "written"}}
    for write in (
        lambda: guarded.create(maps, namespace, body),
        lambda: guarded.replace(maps, namespace, "written", body),
        lambda: guarded.replace_status(maps, namespace, "written", body),
        lambda: guarded.apply(maps, namespace, "written", body, force=True),
        lambda: guarded.delete(maps, namespace, "written"),
    ):
        with pytest.raises(NotLeading):
            write()
    found, _ = guarded.list(maps, namespace=namespace)
    assert "written" not in {one["metadata"]["name"] for one in found}
