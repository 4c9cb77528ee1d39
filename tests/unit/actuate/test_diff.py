"""Differences in words, and events within their limits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from plimsoll.actuate.diff import compare
from plimsoll.actuate.events import MAX_NOTE, event
from plimsoll.actuate.ownership import Owner


@pytest.mark.parametrize(
    ("wanted", "found", "first"),
    [
        pytest.param({"a": 1}, {"a": 1, "b": 2}, "", id="more than wanted"),
        pytest.param({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, "", id="equal"),
        pytest.param({"a": 1}, {}, "a is missing, wanted 1", id="missing"),
        pytest.param({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b is 2, wanted 1", id="different"),
        pytest.param({"a": [1]}, {"a": [1, 2]}, "a has 2 entries, wanted 1", id="longer list"),
        pytest.param({"a": [{"x": 1}]}, {"a": [{"x": 2}]}, "a[0].x is 2, wanted 1", id="in a list"),
        pytest.param({"a": {"b": 1}}, {"a": None}, "a is None, wanted {'b': 1}", id="no mapping"),
        pytest.param({"a": [1]}, {"a": "1"}, "a is '1', wanted [1]", id="no list"),
    ],
)
def test_the_first_difference_in_words(wanted: object, found: object, first: str) -> None:
    difference = compare(wanted, found)
    assert difference.first == first
    assert difference.equal == (first == "")


def test_an_event_is_within_the_limits_and_names_its_resource() -> None:
    owner = Owner("models", "a" * 40, "uid")
    now = datetime(2026, 11, 23, 4, 0, 0, 123, tzinfo=UTC)
    body = event(owner, "PlanRejected", "ü" * 2000, now, "h" * 300, warning=True)
    assert len(body["note"].encode()) <= MAX_NOTE
    assert body["note"].endswith("…")
    assert len(body["reportingInstance"]) <= 128
    assert (body["type"], body["action"]) == ("Warning", "PlanRejected")
    assert body["eventTime"] == "2026-11-23T04:00:00.000123Z"
    assert body["regarding"]["uid"] == "uid"
