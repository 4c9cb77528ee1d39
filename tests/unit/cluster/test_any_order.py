"""Faults in any order: no GPU is promised twice at any time, and what can be served is served in the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.cluster.test_failures import OUT_OF_MEMORY, fail
from tests.unit.cluster.world import World, facts, gpu_node

NAMES = ("one", "two")


class Story:
    """Random things happen to a world of eight GPUs."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(gpu_node("g1", 4), gpu_node("g2", 2), gpu_node("g3", 2))
        for name in NAMES:
            self.world.deploy(name, replicas=2)
        self.work()

    def work(self, *, stop_after: int | None = None) -> None:
        """One round of the operator, and of the kubelets."""
        world = self.world
        world.step(stop_after=stop_after)
        for pod in world.inspect_pods():
            if "status" not in pod:
                world.end_inspection(pod["metadata"]["labels"]["plimsoll.dev/deployment"], facts().pack())
        self.let_terminating_pods_go()
        world.run_pods()
        for node, promised in world.gpus_promised().items():
            there = {"g1": 4, "g2": 2, "g3": 2}[node]
            assert promised <= there, f"{promised} GPUs of {there} on {node}"

    def let_terminating_pods_go(self) -> None:
        for name, pod in list(self.world.pods.items()):
            if "deletionTimestamp" in pod["metadata"] and self.random.random() < 0.5:
                del self.world.pods[name]

    # --- what can happen

    def change_the_spec(self) -> None:
        sequences = self.random.choice((2, 4, 8))
        self.world.edit(self.random.choice(NAMES), workload={"maxConcurrentSequences": sequences})

    def scale(self) -> None:
        self.world.edit(self.random.choice(NAMES), replicas=self.random.randrange(4))

    def change_the_strategy(self) -> None:
        strategy = self.random.choice(("Auto", "Surge", "Recreate"))
        self.world.edit(self.random.choice(NAMES), rollout={"strategy": strategy})

    def suspend_or_resume(self) -> None:
        self.world.edit(self.random.choice(NAMES), suspend=self.random.random() < 0.5)

    def _pod(self) -> dict[str, Any] | None:
        pods = self.world.worker_pods()
        return self.random.choice(pods) if pods else None

    def delete_a_pod(self) -> None:
        if pod := self._pod():
            del self.world.pods[pod["metadata"]["name"]]

    def terminate_a_pod(self) -> None:
        if pod := self._pod():
            self.world.terminate(pod)

    def crash_a_pod(self) -> None:
        if (pod := self._pod()) and "status" in pod:
            message = self.random.choice(("", OUT_OF_MEMORY))
            self.world.crash(pod, message, restarts=self.random.randrange(7))

    def evict_a_pod(self) -> None:
        if pod := self._pod():
            fail(self.world, pod, self.random.choice(("Evicted", "UnexpectedAdmissionError")))

    def take_a_node_away_or_bring_it_back(self) -> None:
        node = self.world.nodes[self.random.choice(("g1", "g2", "g3"))]
        condition = node["status"]["conditions"][0]
        condition["status"] = "True" if condition["status"] == "False" else "False"

    def cordon_or_uncordon(self) -> None:
        node = self.world.nodes[self.random.choice(("g1", "g2", "g3"))]
        node["spec"]["unschedulable"] = not node["spec"].get("unschedulable", False)

    def kill_the_operator(self) -> None:
        self.work(stop_after=self.random.randrange(6))
        self.world.restart()

    def lose_the_status(self) -> None:
        self.world.resources[self.random.choice(NAMES)].pop("status", None)
        self.world.restart()

    def let_time_pass(self) -> None:
        self.world.pass_time(seconds=self.random.choice((5, 61, 700)))


HAPPENINGS: tuple[Callable[[Story], None], ...] = (
    Story.change_the_spec,
    Story.scale,
    Story.change_the_strategy,
    Story.suspend_or_resume,
    Story.delete_a_pod,
    Story.terminate_a_pod,
    Story.crash_a_pod,
    Story.evict_a_pod,
    Story.take_a_node_away_or_bring_it_back,
    Story.cordon_or_uncordon,
    Story.kill_the_operator,
    Story.lose_the_status,
    Story.let_time_pass,
)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_in_the_end_all_is_served(seed: int) -> None:
    story = Story(seed)
    for _ in range(40):
        story.random.choice(HAPPENINGS)(story)
        story.work()
    world = story.world
    for node in world.nodes.values():
        node["status"]["conditions"][0]["status"] = "True"
        node["spec"]["unschedulable"] = False
    for name in NAMES:
        world.edit(name, replicas=2, suspend=False, rollout={}, workload={"maxConcurrentSequences": 3})
        world.annotate(name, retry=f"after the story {seed}")
    for pod in world.worker_pods():
        pod.pop("status", None)
    for _ in range(40):
        story.work()
        world.pass_time(seconds=30)
    world.settle()
    for name in NAMES:
        ready = world.condition(name, "Ready")
        assert ready["status"] == "True", ready
        revisions = {pod["metadata"]["labels"]["plimsoll.dev/revision"] for pod in world.worker_pods(name)}
        assert revisions == {world.status(name)["updateRevision"]}
        assert len(world.worker_pods(name)) == 2
    assert len(world.revisions) == 2
