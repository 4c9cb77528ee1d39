"""A client that never stops asking, through everything that replaces a worker or an operator: it notices
nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
from tests.cluster.operator_process import OperatorProcess
from tests.node.test_main_path import PROMPT, Scene, images, operators, scene

from plimsoll.api.v1alpha1 import GROUP, PLURAL, VERSION

__all__ = ["images", "operators", "scene"]
pytestmark = [pytest.mark.cluster, pytest.mark.node]

ENOUGH = 5
"""Answers that a client has got in each of the scenes."""
ROLL_OUT_SECONDS = 300


@dataclass
class Client:
    """Asks as fast as it is answered, and tries nothing twice. `patient` keeps its connection; another one
    connects anew for each request."""

    url: str
    model: str
    patient: bool
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, stopped: threading.Event) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if self.patient else 0)
        with httpx.Client(limits=limits) as http:
            api = openai.OpenAI(
                base_url=self.url, api_key="none", timeout=120, max_retries=0, http_client=http
            )
            while not stopped.is_set():
                began = time.strftime("%H:%M:%S")
                try:
                    self._ask(api)
                    self.answered += 1
                except openai.OpenAIError as error:
                    self.failures.append(f"{began}: {type(error).__name__}: {error}: {error.__cause__!r}")

    def _ask(self, api: openai.OpenAI) -> None:
        stream = api.completions.create(
            model=self.model, prompt=PROMPT, max_tokens=4, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


class Clients:
    def __init__(self, url: str, model: str) -> None:
        self.each = [Client(url, model, patient) for patient in (True, False)]
        self._stopped = threading.Event()

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=client.run, args=(self._stopped,), name="client") for client in self.each
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def got(self) -> list[int]:
        return [client.answered for client in self.each]

    def failures(self) -> list[str]:
        return [failure for client in self.each for failure in client.failures]


def test_no_request_fails_while_workers_and_operators_are_replaced(
    scene: Scene, operators: Callable[..., OperatorProcess]
) -> None:
    first = operators()
    name = scene.apply("smollm2-pvc.yaml")
    scene.wait_ready(name)
    clients = Clients(scene.reached(name), name)

    def served_more() -> None:
        """Each client got some answers more from here on."""
        before = clients.got()
        scene.wait(
            lambda: all(now >= then + ENOUGH for now, then in zip(clients.got(), before, strict=True)),
            "the clients are answered",
            name,
        )

    def uids() -> set[str]:
        return {pod.metadata.uid for pod in scene.workers(name) if pod.metadata.deletion_timestamp is None}

    with clients.asking():
        served_more()
        old = uids()
        change: dict[str, Any] = {"spec": {"podTemplate": {"labels": {"example.com/round": "2"}}}}
        scene.resources.patch_namespaced_custom_object(
            GROUP,
            VERSION,
            scene.namespace,
            PLURAL,
            name,
            change,
            _content_type="application/merge-patch+json",
        )
        scene.wait(
            lambda: not old & {pod.metadata.uid for pod in scene.workers(name)},
            "the old worker is gone",
            name,
            ROLL_OUT_SECONDS,
        )
        scene.wait_ready(name)
        served_more()
        new = uids()

        first.kill()
        served_more()
        second = operators()
        scene.wait(second.ready, "the second operator is synced", name)
        served_more()

        second.stop()
        third = operators(
            worker_image="plimsoll.dev/worker:next", operator_image="plimsoll.dev/operator:next"
        )
        scene.wait(third.ready, "the operator of a new version is synced", name)
        served_more()
        assert uids() == new
    assert clients.failures() == []
