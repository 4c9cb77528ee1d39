"""From a resource to the facts of its model: one pod, every way it can end, and nothing left behind."""

from __future__ import annotations

import pytest
from tests.unit.cluster.world import CLAIM, World, cpu_node, facts, gpu_node, kinds

from plimsoll.model.facts import InspectFailure


@pytest.fixture
def world() -> World:
    return World(cpu_node("a"), gpu_node("g"))


def test_first_sight_tells_all_conditions_and_starts_one_pod(world: World) -> None:
    world.deploy("small")
    world.step()
    assert len(world.status("small")["conditions"]) == 8
    assert world.condition("small", "ModelResolved")["status"] == "Unknown"
    assert [pod["metadata"]["name"] for pod in world.inspect_pods()] == [
        world.inspect_pods()[0]["metadata"]["name"]
    ]
    assert world.step() == 0


def test_facts_are_in_a_revision_before_their_pod_is_deleted(world: World) -> None:
    world.deploy("small")
    world.settle()
    world.end_inspection("small", facts().pack())
    actions = kinds(world.outcome("small").actions)
    assert actions.index("WriteRevision") < actions.index("WriteStatus") < actions.index("DeletePod")
    world.settle()
    assert not world.inspect_pods()
    assert world.condition("small", "ModelResolved")["status"] == "True"
    assert world.status("small")["model"]["revision"] == "c0ffee"


def test_a_restarted_operator_does_not_inspect_again(world: World) -> None:
    world.serve("small")
    world.restart()
    assert world.step() == 0


def test_a_second_resource_of_the_same_source_needs_no_pod(world: World) -> None:
    world.serve("small")
    world.deploy("twin")
    world.settle()
    assert not world.inspect_pods("twin")
    assert world.condition("twin", "ModelResolved")["status"] == "True"


def test_facts_of_another_secret_are_not_used(world: World) -> None:
    world.serve("small")
    source = {"huggingFace": {"repo": "acme/small"}, "credentialsSecretRef": {"name": "mine"}}
    world.deploy("gated", {"model": source})
    world.settle()
    assert world.inspect_pods("gated")


@pytest.mark.parametrize(
    "reason",
    ["ModelNotFound", "ModelFileTruncated", "ModelFileUnreadable", "ArchitectureUnsupported", "AccessDenied"],
)
def test_a_failure_is_told_in_its_own_words_and_leaves_no_pod(world: World, reason: str) -> None:
    world.deploy("small")
    world.settle()
    message = "model.gguf: 1000 bytes, the header promises 2000"
    failure = InspectFailure(reason=reason, message=message)
    world.end_inspection("small", failure.model_dump_json(by_alias=True))
    world.settle()
    told = world.condition("small", "ModelResolved")
    assert (told["status"], told["reason"]) == ("False", reason)
    assert message in told["message"]
    assert not world.inspect_pods()
    assert "ModelFailed" in [event.reason for event in world.events]
    world.pass_time(seconds=60)
    assert world.step() == 0, "a failure that needs a person is not tried again every minute"


def test_an_unreachable_hub_is_tried_again_with_growing_pauses(world: World) -> None:
    world.deploy("small")
    pauses = []
    for _ in range(4):
        world.settle()
        failure = InspectFailure(reason="HubUnreachable", message="no answer")
        world.end_inspection("small", failure.model_dump_json(by_alias=True), exit_code=2)
        wake = world.outcome("small").wake_at
        assert wake is not None
        pauses.append((wake - world.now).total_seconds())
        world.settle()
        assert world.condition("small", "ModelResolved")["reason"] == "HubUnreachable"
        world.now = wake
    assert pauses == [5, 10, 20, 40]
    world.settle()
    assert world.condition("small", "ModelResolved")["reason"] == "HubUnreachable", (
        "no flapping while retrying"
    )
    world.end_inspection("small", facts().pack())
    world.settle()
    assert world.condition("small", "ModelResolved")["status"] == "True"


def test_one_failed_pod_counts_once_however_often_it_is_seen(world: World) -> None:
    world.deploy("small")
    world.settle()
    failure = InspectFailure(reason="HubUnreachable", message="no answer")
    world.end_inspection("small", failure.model_dump_json(by_alias=True), exit_code=2)
    before = world.outcome("small").memory.inspection
    world.step(stop_after=1)  # the status is written, the pod not yet deleted
    assert world.outcome("small").memory.inspection == before


def test_a_changed_source_forgets_the_failure_and_the_old_pod(world: World) -> None:
    world.deploy("small")
    world.settle()
    old = world.inspect_pods()[0]["metadata"]["name"]
    world.edit("small", model={"huggingFace": {"repo": "acme/other"}})
    world.settle()
    assert [pod["metadata"]["name"] for pod in world.inspect_pods()] != [old]
    assert len(world.inspect_pods()) == 1


def test_a_missing_claim_starts_no_pod_until_it_appears(world: World) -> None:
    world.deploy("small", CLAIM)
    world.settle()
    told = world.condition("small", "ModelResolved")
    assert (told["status"], told["reason"]) == ("False", "VolumeNotFound")
    assert "weights" in told["message"]
    assert not world.pods
    world.provide_claim()
    world.settle()
    assert len(world.inspect_pods()) == 1


def _waiting(reason: str, message: str) -> dict[str, object]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "inspect", "state": state}]}


def _unschedulable(message: str) -> dict[str, object]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": "2026-11-23T04:00:00Z",
    }
    return {"phase": "Pending", "conditions": [condition]}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        pytest.param(_waiting("ErrImagePull", "no such image"), "ImagePullBackOff", id="image"),
        pytest.param(_waiting("ImagePullBackOff", "no such image"), "ImagePullBackOff", id="image back-off"),
        pytest.param(
            _waiting("CreateContainerConfigError", 'secret "token" not found'),
            "CreateContainerConfigError",
            id="secret",
        ),
        pytest.param(_unschedulable("0/2 nodes are available"), "Unschedulable", id="no node"),
    ],
)
def test_a_stuck_pod_is_told_at_once_and_deleted_at_its_deadline(
    world: World, status: dict[str, object], reason: str
) -> None:
    world.deploy("small")
    world.settle()
    world.inspect_pods()[0]["status"] = status
    world.settle()
    assert world.condition("small", "ModelResolved")["reason"] == reason
    assert world.inspect_pods(), "it may still come"
    world.pass_time(seconds=300)
    world.settle()
    assert not world.inspect_pods()
    assert world.condition("small", "ModelResolved")["reason"] == reason


@pytest.mark.parametrize(
    ("message", "exit_code", "words"),
    [
        pytest.param("Traceback: boom", 1, "Traceback: boom", id="crash"),
        pytest.param("", 137, "exit code 137", id="killed"),
        pytest.param("plimsoll.facts.v1:!!!", 0, "damaged", id="damaged facts"),
    ],
)
def test_an_end_without_facts_is_told(world: World, message: str, exit_code: int, words: str) -> None:
    world.deploy("small")
    world.settle()
    world.end_inspection("small", message, exit_code=exit_code)
    world.settle()
    told = world.condition("small", "ModelResolved")
    assert told["status"] == "False"
    assert words in told["message"]
    assert not world.inspect_pods()
