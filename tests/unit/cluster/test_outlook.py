"""Whoever reads a condition learns what follows from the fault, not only its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.cluster.test_failures import OUT_OF_MEMORY, only, served
from tests.unit.cluster.world import START, World, gpu_node

from plimsoll.cluster.own_pods import stamp


def waits(world: World, reason: str, message: str = "no such thing") -> None:
    waiting = {"reason": reason, "message": message}
    only(world)["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"name": "worker", "state": {"waiting": waiting}}],
    }


def ends(world: World, reason: str) -> None:
    only(world)["status"] = {"phase": "Failed", "reason": reason, "message": "the node said so."}


FAULTS: dict[str, tuple[Callable[[World], None], str, str]] = {
    "image": (
        lambda world: waits(world, "ErrImagePull"),
        "ImagePullBackOff",
        "no such thing; the kubelet goes on trying; where the name is wrong, write another engine.image",
    ),
    "without a word of the kubelet's": (
        lambda world: waits(world, "CreateContainerError", ""),
        "CreateContainerError",
        ": the kubelet goes on trying until what it lacks is there",
    ),
    "restarted in place": (
        lambda world: world.crash(only(world), "no kernel"),
        "Error",
        "restarts it with growing pauses; its replica is given up after rollout.maxRestarts (5)",
    ),
    "out of memory": (
        lambda world: world.crash(only(world), OUT_OF_MEMORY),
        "CUDAOutOfMemory",
        "; this configuration is left out from now on, and another one planned in its place",
    ),
    "ended for good": (
        lambda world: ends(world, "UnexpectedAdmissionError"),
        "UnexpectedAdmissionError",
        "the node said so; its replica is made anew at {later}; its replica is given up after",
    ),
}


@pytest.mark.parametrize(("fault", "reason", "told"), FAULTS.values(), ids=FAULTS)
def test_a_failure_says_what_follows(fault: Callable[[World], None], reason: str, told: str) -> None:
    world = served(gpu_node("g1", 1))
    fault(world)
    world.step()
    ready: dict[str, Any] = world.condition("small", "Ready")
    assert ready["reason"] == reason
    later = stamp(START).replace(":00Z", ":10Z")
    assert told.format(later=later) in ready["message"]


@pytest.mark.parametrize(
    ("replan", "told"),
    [
        ("OnPlacementFailure", "node g1 is left out for 10 minutes and the replica planned elsewhere"),
        ("Manual", "plan.replan is Manual, so it waits for node g1; a new value of the annotation"),
    ],
)
def test_a_pod_without_a_place_says_until_when_it_waits(replan: str, told: str) -> None:
    world = World(gpu_node("g1", 1))
    world.serve("small", plan={"replan": replan})
    pod = only(world)
    pod["spec"].pop("nodeName", None)
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    refused |= {"message": "0/1 nodes are available.", "lastTransitionTime": stamp(START)}
    pod["status"] = {"phase": "Pending", "conditions": [refused]}
    world.settle()
    scheduled = world.condition("small", "Scheduled")
    assert scheduled["reason"] == "Unschedulable"
    assert "0/1 nodes are available; " in scheduled["message"]
    assert told in scheduled["message"]
