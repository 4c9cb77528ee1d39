"""Conditions tell one story, in Kubernetes' way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.conditions import (
    ConditionType,
    Failure,
    Finding,
    Observation,
    conditions,
    fails,
    holds,
    pending,
)
from plimsoll.api.v1alpha1 import Condition

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

NEW = Observation(generation=3)
RESOLVED = replace(NEW, model=holds("Resolved", "llama, 134.5 M parameters"))
PLANNED = replace(RESOLVED, plan=holds("Planned", "FP32 TP1xPP1 on CPU of node-a"))
CREATED = replace(PLANNED, existing=1, updated=1)
BOUND = replace(CREATED, updated_scheduled=1)
SERVING = replace(
    BOUND, ready=1, updated_ready=1, verified=holds("AsPlanned"), url="http://smol.demo:8000/v1"
)
CRASH = Failure("CUDAOutOfMemory", "tried to allocate 2.0 GiB", "smol-r0")
TWO = replace(
    SERVING, desired=2, existing=2, ready=2, updated=2, updated_scheduled=2, updated_ready=2, url=""
)


def told(seen: Observation) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    return {found.type: (found.status, found.reason) for found in conditions(seen, now=NOW)}


class Story(NamedTuple):
    seen: Observation
    ready: str
    available: str
    progressing: str
    degraded: str


UP, DOWN = "True MinimumReplicasAvailable", "False MinimumReplicasUnavailable"
FINE, DONE = "False AsExpected", "False Complete"
KNOWN, UNPLANNED, UNREAD = "True Resolved", "Unknown WaitingForPlan", "Unknown AwaitingReport"
SUSPENDED = "Unknown Suspended"

STORIES = {
    "just created": Story(
        NEW,
        "Unknown ResolvingModel", "Unknown ResolvingModel", "True ResolvingModel", "Unknown ResolvingModel",
    ),
    "model missing": Story(
        replace(NEW, model=fails("ModelNotFound", "no repository a/b on https://hub")),
        "False ModelNotFound", DOWN, "False ModelNotFound", "True ModelNotFound",
    ),
    "spec does not parse": Story(
        replace(NEW, invalid="spec.model: set exactly one source"),
        "False InvalidSpec", DOWN, "False InvalidSpec", "True InvalidSpec",
    ),
    "new spec does not parse while the old one serves": Story(
        replace(SERVING, invalid="spec.model: set exactly one source", desired=0),
        "False InvalidSpec", UP, "False InvalidSpec", "True InvalidSpec",
    ),
    "being planned": Story(
        RESOLVED, "Unknown Planning", "Unknown Planning", "True Planning", "Unknown Planning"
    ),
    "nothing fits": Story(
        replace(RESOLVED, plan=fails("InsufficientMemory", "needs 71.2 GiB, the most free is 44.5 GiB")),
        "False InsufficientMemory", DOWN, "False InsufficientMemory",
        "True InsufficientMemory",
    ),
    "planned, pods to be made": Story(
        PLANNED, "Unknown Scheduling", "Unknown Scheduling", "True Scheduling", "Unknown Scheduling"
    ),
    "pods wait for the scheduler": Story(
        CREATED, "Unknown Scheduling", DOWN, "True Scheduling", FINE
    ),
    "scheduler finds no node": Story(
        replace(CREATED, unschedulable="0/3 nodes are available: 3 Insufficient cpu"),
        "False Unschedulable", DOWN, "False Unschedulable", "True Unschedulable",
    ),
    "quota refuses the pod": Story(
        replace(PLANNED, refused='pods "smol-r0" is forbidden: exceeded quota'),
        "False PodRefused", DOWN, "False PodRefused", "True PodRefused",
    ),
    "loading weights": Story(
        BOUND, "False Starting", DOWN, "True Starting", FINE
    ),
    "worker crashes": Story(
        replace(BOUND, failures=(CRASH,)),
        "False CUDAOutOfMemory", DOWN, "True Restarting", "True CUDAOutOfMemory",
    ),
    "serving": Story(
        SERVING, "True Ready", UP, DONE, FINE
    ),
    "serving, an old crash is history": Story(
        replace(SERVING, failures=(CRASH,)),
        "True Ready", UP, DONE, FINE,
    ),
    "serving, report cannot be read": Story(
        replace(SERVING, verified=pending("ReportUnreachable", "allow port 8001 from plimsoll-system")),
        "True Ready", UP, DONE, FINE,
    ),
    "report contradicts the plan": Story(
        replace(SERVING, verified=fails("EffectiveConfigMismatch", "BF16 was planned, FP32 runs")),
        "False EffectiveConfigMismatch", UP, "False EffectiveConfigMismatch",
        "True EffectiveConfigMismatch",
    ),
    "new spec is read while the old one serves": Story(
        replace(SERVING, model=NEW.model, plan=NEW.plan, updated=0, updated_scheduled=0, updated_ready=0),
        "Unknown ResolvingModel", UP, "True ResolvingModel", FINE,
    ),
    "new spec fits nowhere while the old one serves": Story(
        replace(
            SERVING, plan=fails("InsufficientMemory", "…"), updated=0, updated_scheduled=0, updated_ready=0
        ),
        "False InsufficientMemory", UP, "False InsufficientMemory",
        "True InsufficientMemory",
    ),
    "rolling out": Story(
        replace(SERVING, existing=2, updated=1, updated_scheduled=1, updated_ready=0, ready=1),
        "False Updating", UP, "True Updating", FINE,
    ),
    "old replica still draining": Story(
        replace(SERVING, existing=2, ready=2),
        "False Updating", UP, "True Updating", FINE,
    ),
    "scaling down": Story(
        replace(SERVING, existing=3, updated=3, ready=3, updated_ready=3, updated_scheduled=3),
        "False ScalingDown", UP, "True ScalingDown", FINE,
    ),
    "one of two has no place": Story(
        replace(
            TWO, plan=fails("InsufficientGPUs", "1 of 2 replicas has a place"),
            existing=1, updated=1, updated_scheduled=1, updated_ready=1, ready=1,
        ),
        "False InsufficientGPUs", UP, "False InsufficientGPUs",
        "True InsufficientGPUs",
    ),
    "one of two crashes": Story(
        replace(TWO, ready=1, updated_ready=1, failures=(CRASH,)),
        "False CUDAOutOfMemory", UP, "True Restarting", "True CUDAOutOfMemory",
    ),
    "one of two, where two are promised": Story(
        replace(TWO, ready=1, updated_ready=1, promised=2),
        "False Starting", DOWN, "True Starting", FINE,
    ),
    "both of two": Story(
        TWO, "True Ready", UP, DONE, FINE
    ),
    "suspended": Story(
        replace(PLANNED, suspended=True),
        "False Suspended", "False Suspended", "False Suspended", FINE,
    ),
    "suspended, pods still stopping": Story(
        replace(SERVING, suspended=True),
        "False Suspended", "False Suspended", "True Stopping", FINE,
    ),
    "plan only": Story(
        replace(PLANNED, plan_only=True), "False PlanOnly", "False PlanOnly", "False PlanOnly", FINE
    ),
    "plan only, nothing fits": Story(
        replace(RESOLVED, plan_only=True, plan=fails("InsufficientMemory", "…")),
        "False InsufficientMemory", "False PlanOnly", "False PlanOnly", "True InsufficientMemory",
    ),
    "scaled to zero": Story(
        replace(PLANNED, desired=0),
        "False ScaledToZero", "False ScaledToZero", "False ScaledToZero", FINE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_what_is_told(story: Story) -> None:
    found = told(story.seen)
    summaries = (
        ConditionType.READY,
        ConditionType.AVAILABLE,
        ConditionType.PROGRESSING,
        ConditionType.DEGRADED,
    )
    assert [" ".join(found[kind]) for kind in summaries] == list(story[1:])


@pytest.mark.parametrize(
    ("seen", "model", "plan", "nodes", "report"),
    [
        (NEW, "Unknown ResolvingModel", "Unknown WaitingForModel", UNPLANNED, UNREAD),
        (RESOLVED, KNOWN, "Unknown Planning", UNPLANNED, UNREAD),
        (BOUND, KNOWN, "True Planned", "True Scheduled", UNREAD),
        (SERVING, KNOWN, "True Planned", "True Scheduled", "True AsPlanned"),
        (
            replace(NEW, invalid="…"),
            "Unknown ResolvingModel", "False InvalidSpec", UNPLANNED, UNREAD,
        ),
        (replace(PLANNED, suspended=True), KNOWN, "True Planned", SUSPENDED, SUSPENDED),
    ],
    ids=["new", "resolved", "bound", "serving", "invalid", "suspended"],
)  # fmt: skip
def test_each_step_has_its_condition(
    seen: Observation, model: str, plan: str, nodes: str, report: str
) -> None:
    found = told(seen)
    steps = ("ModelResolved", "Planned", "Scheduled", "Verified")
    assert [" ".join(found[step]) for step in steps] == [model, plan, nodes, report]


def test_ready_says_where() -> None:
    ready = conditions(SERVING, now=NOW)[0]
    assert ready.message == "1 of 1 replicas answer at http://smol.demo:8000/v1"


def test_a_failure_names_its_pod_and_counts_the_others() -> None:
    ready = conditions(replace(BOUND, failures=(CRASH, CRASH, CRASH)), now=NOW)[0]
    assert ready.message == "pod smol-r0: tried to allocate 2.0 GiB (and 2 more)"


def test_the_time_of_a_condition_moves_only_when_its_status_flips() -> None:
    before = conditions(BOUND, now=NOW)
    after = {condition.type: condition for condition in conditions(SERVING, before, now=LATER)}
    moved = {
        kind for kind, condition in after.items() if condition.last_transition_time == "2026-03-01T12:05:00Z"
    }
    assert moved == {"Ready", "Available", "Verified", "Progressing"}
    assert after["Planned"].last_transition_time == "2026-03-01T12:00:00Z"


def test_reasons_change_without_moving_the_time() -> None:
    before = conditions(NEW, now=NOW)
    after = conditions(RESOLVED, before, now=LATER)
    assert after[0].reason == "Planning"
    assert after[0].last_transition_time == before[0].last_transition_time


@pytest.mark.parametrize(
    ("word", "reason"),
    [("Crash Loop", "CrashLoop"), ("42", "Failed"), ("", "Failed"), ("_OOM-Killed", "OOMKilled")],
)
def test_an_odd_word_of_a_kubelet_becomes_a_reason(word: str, reason: str) -> None:
    seen = replace(BOUND, failures=(Failure(word, "", "p"),))
    assert conditions(seen, now=NOW)[0].reason == reason


def test_an_endless_message_is_cut_to_what_the_api_server_takes() -> None:
    seen = replace(NEW, model=fails("ModelNotFound", "x" * 40_000))
    assert len(conditions(seen, now=NOW)[0].message) == 32_768


words = st.text(max_size=12)
findings = st.builds(Finding, st.sampled_from([True, False, None]), words, words)
counts = st.integers(0, 4)
observations = st.builds(
    Observation,
    generation=st.integers(1, 9),
    desired=counts,
    existing=counts,
    ready=counts,
    updated=counts,
    updated_scheduled=counts,
    updated_ready=counts,
    invalid=st.sampled_from(["", "spec.model: …"]),
    suspended=st.booleans(),
    plan_only=st.booleans(),
    model=findings,
    plan=findings,
    unschedulable=st.sampled_from(["", "0/3 nodes are available"]),
    refused=st.sampled_from(["", "exceeded quota"]),
    failures=st.lists(st.builds(Failure, words, words, words), max_size=2).map(tuple),
    verified=findings,
    promised=st.none() | counts,
)


@given(observations, observations)
def test_whatever_is_seen_the_story_is_whole_and_consistent(first: Observation, second: Observation) -> None:
    before = conditions(first, now=NOW)
    after = conditions(second, before, now=LATER)
    assert [condition.type for condition in after] == list(ConditionType)
    for old, new in zip(before, after, strict=True):
        flipped = old.status != new.status
        assert new.last_transition_time == ("2026-03-01T12:05:00Z" if flipped else old.last_transition_time)
        assert new.observed_generation == second.generation
        assert Condition.model_validate(new.to_dict()) == new
    assert conditions(second, after, now=LATER + timedelta(hours=1)) == after

    by_type = {condition.type: condition for condition in after}
    off = second.suspended or second.plan_only or (second.desired == 0 and not second.invalid)
    if by_type["Ready"].status == "True":
        assert not off
        assert all(by_type[step].status == "True" for step in ("ModelResolved", "Planned", "Scheduled"))
        assert by_type["Progressing"].status == by_type["Degraded"].status == "False"
    else:
        explained = off or "True" in (by_type["Progressing"].status, by_type["Degraded"].status)
        assert explained, "not ready, and nobody is told whether to wait or to act"
