"""What becomes of a write that goes wrong: of what was promised for it, and of what is known of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from tests.unit.cluster.world import World, facts, gpu_node

from plimsoll.actuate.apply import Ending, Executor, Result
from plimsoll.actuate.recorder import Recorder
from plimsoll.cluster.kube import (
    DEPLOYMENTS,
    AlreadyExists,
    Kind,
    Kube,
    KubeError,
    NotFound,
    NotLeading,
    Refused,
    Unavailable,
)
from plimsoll.cluster.observed import CreatePod, Memory, Observed
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.state import ClusterState


class Script:
    """In place of the API server: answers a create, and the read of what has the name."""

    def __init__(self, create: KubeError | None, found: dict[str, Any] | KubeError | None = None) -> None:
        self._create, self._found = create, found
        self.created: list[str] = []
        self.deployment: Any = None

    def create(self, _kind: Any, _namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._create:
            raise self._create
        self.created.append(body["metadata"]["name"])
        return body

    def get(self, kind: Kind, _namespace: str, _name: str) -> Any:
        if kind is DEPLOYMENTS:
            return self.deployment
        if isinstance(self._found, KubeError):
            raise self._found
        return self._found


class Bench:
    """One pod to create, and everything that is known."""

    def __init__(self) -> None:
        self.world = world = World(gpu_node("g"))
        world.deploy("small")
        world.settle()
        world.end_inspection("small", facts().pack())
        self.observed: Observed = world.observe("small")
        self.action = next(
            action for action in world.outcome("small").actions if isinstance(action, CreatePod)
        )
        self.state, self.ledger, self.now = ClusterState(lambda: None), Ledger(), 10.0
        self.state.nodes.replace(world.nodes.values())
        self.state.resources.replace(world.resources.values())

    def create(self, script: Script) -> Result:
        script.deployment = self.world.resources["small"]
        executor = Executor(
            cast(Kube, script), self.state, self.ledger, cast(Recorder, None), monotonic=lambda: self.now
        )
        return executor.carry_out(self.observed, [self.action], Memory(), self.state.snapshot())

    def pod(self, **meta: Any) -> dict[str, Any]:
        body = dict(self.action.body)
        return body | {"metadata": body["metadata"] | meta}

    @property
    def answered(self) -> list[float | None]:
        """Of what is promised, when the API server answered."""
        return [held.there_at for held in self.ledger.held().values()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_pod_that_was_made_is_promised_until_it_is_shown(bench: Bench) -> None:
    assert bench.create(Script(None)).ending is Ending.DONE
    assert bench.answered == [10.0]


def test_a_pod_that_may_have_been_made_keeps_its_room_and_is_asked_for_again(bench: Bench) -> None:
    assert bench.create(Script(Unavailable("read timed out"))).ending is Ending.FAILED
    assert bench.answered == [None], "the API server may make it yet: its GPU is not free"
    again = Script(None)
    assert bench.create(again).ending is Ending.DONE
    assert again.created == [bench.action.name]
    assert bench.answered == [10.0]


@pytest.mark.parametrize(
    "error", [Refused("quota", 403), NotFound("no namespace", 404), NotLeading("not now")]
)
def test_a_pod_that_was_not_made_holds_no_room(bench: Bench, error: KubeError) -> None:
    bench.create(Script(error))
    assert bench.answered == []


def test_a_pod_that_is_there_already_is_the_same(bench: Bench) -> None:
    assert bench.create(Script(AlreadyExists("there"), bench.pod())).ending is Ending.DONE
    assert bench.answered == [10.0]


Found = Callable[[Bench], Any]


@pytest.mark.parametrize(
    ("found", "ending"),
    [
        pytest.param(lambda bench: bench.pod(ownerReferences=[]), Ending.REFUSED, id="somebody else's"),
        pytest.param(lambda bench: bench.pod(deletionTimestamp="now"), Ending.OUTDATED, id="it goes"),
        pytest.param(lambda bench: NotFound("gone", 404), Ending.OUTDATED, id="it went meanwhile"),
    ],
)
def test_a_name_that_is_taken_is_told_or_looked_at_again(bench: Bench, found: Found, ending: Ending) -> None:
    assert bench.create(Script(AlreadyExists("there"), found(bench))).ending is ending
    assert bench.answered == []
    assert bench.state.snapshot().resources, "the resource is there whatever became of the pod"
