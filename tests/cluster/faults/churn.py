"""Resources that come, change and go without a pause, and faults at random among them.

There are fewer GPUs than are asked for, so every one that is given back is wanted at once: that is when a GPU
may be promised twice. A seed makes the same choices again; what they meet differs with the machine's speed.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

from kubernetes import client
from tests.cluster.api_proxy import Request
from tests.cluster.faults.conftest import Scene
from tests.cluster.faults.ground import deployment, is_write_in

FEW = {"accelerators": {"products": ["NVIDIA-H100-80GB-HBM3"]}}
"""Eight GPUs."""
MOST = 24
"""Resources at once."""
LEFT = 4
"""Of them in the end; all of those are served."""
ROUNDS_OF_A_LIFE = 3
ERRORS = (409, 429, 500, 503)


class Churn:
    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene, self._chance = scene, random.Random(seed)
        self._living: list[str] = []
        self.made = 0
        self.kills = 0
        self.did: dict[str, int] = {}

    def run(
        self,
        seconds: float,
        *,
        resources: int = 0,
        kills: bool = True,
        each: Callable[[], None] = lambda: None,
    ) -> None:
        """Until the time is over and so many resources were made. `each` is called after each step."""
        steps = [self._create] * 6 + [self._delete] * 3 + [self._scale, self._change, self._lose_pod]
        steps += [self._evict, self._trouble, self._cut] + [self._kill] * kills
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or self.made < resources:
            step = self._chance.choice(steps)
            # What was chosen may be gone by now, and the API server may be in the trouble that was made.
            with contextlib.suppress(client.ApiException):
                step()
            self.did[step.__name__] = self.did.get(step.__name__, 0) + 1
            each()

    def settle(self) -> None:
        """No more faults; a few resources stay, and there are GPUs for all of them."""
        scene = self._scene
        scene.ground.proxy.status = lambda _request: 0
        while len(self._living) > LEFT:
            self._delete()
        for name in self._living:
            scene.models.scale(name, 1)
        scene.ground.operator  # noqa: B018
        for name in self._living:
            scene.ready(name)
        scene.wait(
            lambda: len(scene.models.pods()) == len(self._living), "one pod for each", scene.models.pod_uids
        )

    def _create(self) -> None:
        if len(self._living) >= MOST:
            self._delete()
        name = f"c{self.made}"
        self.made += 1
        spec = deployment(placement=FEW, replicas=self._chance.randint(1, 2))
        self._scene.models.apply(name, spec)
        self._living.append(name)

    def _one(self) -> str:
        return self._chance.choice(self._living)

    def _delete(self) -> None:
        if self._living:
            name = self._living.pop(self._chance.randrange(len(self._living)))
            self._scene.models.delete(name)

    def _scale(self) -> None:
        if self._living:
            self._scene.models.scale(self._one(), self._chance.randint(0, 3))

    def _change(self) -> None:
        if self._living:
            sequences = self._chance.randint(1, 8)
            self._scene.models.patch(self._one(), {"workload": {"maxConcurrentSequences": sequences}})

    def _lose_pod(self) -> None:
        if pods := self._scene.models.pods():
            name = self._chance.choice(pods).metadata.name
            self._scene.models.core.delete_namespaced_pod(
                name, self._scene.models.name, grace_period_seconds=0
            )

    def _evict(self) -> None:
        if pods := self._scene.models.pods():
            name = self._chance.choice(pods).metadata.name
            body = {"metadata": {"name": name}}
            self._scene.models.core.create_namespaced_pod_eviction(name, self._scene.models.name, body)

    def _trouble(self) -> None:
        """For a while, every fifth write of the operator gets an error; or that is over."""
        ours, chance = is_write_in(self._scene.models.name), random.Random(self._chance.random())
        share = self._chance.choice((0.0, 0.2))

        def status(request: Request) -> int:
            return chance.choice(ERRORS) if ours(request) and chance.random() < share else 0

        self._scene.ground.proxy.status = status

    def _cut(self) -> None:
        self._scene.ground.proxy.cut()

    def _kill(self) -> None:
        """One that has planned: what is killed while it starts has done nothing that could be half done."""
        if self._scene.ground.rounds() >= ROUNDS_OF_A_LIFE:
            self._scene.ground.kill_operator()
            self.kills += 1
