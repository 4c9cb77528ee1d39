"""Reports of workers over real sockets: read when they can be, bounded and told when they cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.unit.cluster.world import World, gpu_node

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.cluster.observed import ReportAnswer
from plimsoll.cluster.own_pods import OwnPod, own_pod
from plimsoll.cluster.reports import (
    BYTES,
    FIRST_RETRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    REFRESH_SECONDS,
    Reports,
    read_report,
)
from plimsoll.cluster.verification import mismatch
from plimsoll_worker.launch import (
    CAPABILITIES,
    Device,
    DeviceReport,
    MeasuredMemory,
    Precision,
    Report,
    WeightsScheme,
)

MEASURED = MeasuredMemory(
    weights=1000,
    kv_cache=500,
    activations=100,
    cuda_graphs=0,
    communication=0,
    runtime=300,
    fragmentation=50,
    unattributed=50,
)


def report(plan: PlanStatus, **changes: Any) -> Report:
    device = DeviceReport(rank=0, product="x", total_bytes=4000, used_bytes=2000, bytes=MEASURED)
    found = Report(
        plan_id=plan.id,
        revision=plan.revision,
        device=plan.device,
        architecture="llama",
        weights=WeightsScheme.plain(plan.weights),
        kv_cache=plan.kv_cache,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        stage=0,
        max_context_tokens=plan.max_context_tokens,
        max_batched_tokens=plan.max_batched_tokens,
        kv_cache_tokens=plan.kv_cache_tokens,
        devices=(device,),
        startup=(),
        torch_version="2.11.0",
    )
    return found.model_copy(update=changes)


@pytest.fixture
def world() -> World:
    world = World(gpu_node("g"))
    world.serve("small")
    return world


@pytest.fixture
def plan(world: World) -> PlanStatus:
    return PlanStatus.model_validate(world.status("small")["plans"][0])


def answer(world: World, told: ReportAnswer) -> None:
    world.reports[world.worker_pods()[0]["metadata"]["uid"]] = told
    world.settle()


def test_a_report_that_agrees_verifies_and_is_measured(world: World, plan: PlanStatus) -> None:
    assert world.condition("small", "Verified")["status"] == "Unknown"
    answer(world, ReportAnswer(report(plan)))
    assert world.condition("small", "Verified")["status"] == "True"
    measured = world.status("small")["measured"][0]
    assert measured["bytes"]["weights"] == 1000
    assert measured["errorPermille"] == (plan.memory[0].total - 2000) * 1000 // 2000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"device": Device.CPU}, "device: planned GPU, runs CPU", id="silent CPU"),
        pytest.param({"weights": WeightsScheme.plain(Precision.FP32)}, "weights", id="precision"),
        pytest.param(
            {"weights": WeightsScheme.stored("gptq", Precision.BF16)},
            "format: planned none, runs gptq",
            id="format",
        ),
        pytest.param({"tensor_parallel": 2}, "tensor parallel: planned 1, runs 2", id="TP"),
        pytest.param({"max_context_tokens": 16}, "longest context", id="context"),
    ],
)
def test_a_report_that_disagrees_degrades_in_words(
    world: World, plan: PlanStatus, changes: dict[str, Any], words: str
) -> None:
    assert words in mismatch(plan, 0, report(plan, **changes))
    answer(world, ReportAnswer(report(plan, **changes)))
    told = world.condition("small", "Verified")
    assert (told["status"], told["reason"]) == ("False", "EffectiveConfigMismatch")
    assert words in told["message"]
    assert world.condition("small", "Degraded")["status"] == "True"
    assert world.condition("small", "Ready")["status"] == "False"


def test_a_report_that_cannot_be_read_names_port_and_namespace_and_takes_nothing_down(world: World) -> None:
    answer(world, ReportAnswer(None, "connection refused"))
    told = world.condition("small", "Verified")
    assert (told["status"], told["reason"]) == ("Unknown", "ReportUnreachable")
    assert "8001" in told["message"]
    assert "plimsoll-system" in told["message"]
    assert world.condition("small", "Ready")["status"] == "True"


@pytest.mark.parametrize("changes", [{}, {"tensor_parallel": 2}], ids=["agrees", "disagrees"])
def test_a_restarted_operator_that_has_asked_nobody_yet_forgets_nothing(
    world: World, plan: PlanStatus, changes: dict[str, Any]
) -> None:
    answer(world, ReportAnswer(report(plan, **changes)))
    world.restart()
    world.reports.clear()
    world.pass_time(minutes=1)
    assert world.step() == 0
    answer(world, ReportAnswer(report(plan)))
    assert world.condition("small", "Verified")["status"] == "True"


def test_what_was_read_of_one_pod_is_not_said_of_the_next(world: World, plan: PlanStatus) -> None:
    answer(world, ReportAnswer(report(plan)))
    world.reports.clear()
    world.pass_time(minutes=1)
    del world.pods[world.worker_pods()[0]["metadata"]["name"]]
    world.settle()
    world.run_pods()
    world.settle()
    assert world.condition("small", "Verified")["reason"] == "AwaitingReport"
    assert not world.status("small")["measured"]


# --- of several workers


@pytest.fixture
def two() -> World:
    world = World(gpu_node("g", 2))
    world.serve("small", replicas=2)
    return world


def answers(world: World, *told: ReportAnswer | None) -> None:
    """By worker, in the order of their names; None: nobody has read it yet."""
    pods = sorted(world.worker_pods(), key=lambda pod: str(pod["metadata"]["name"]))
    world.reports = {
        pod["metadata"]["uid"]: said for pod, said in zip(pods, told, strict=True) if said is not None
    }
    world.settle()


def agreeing(world: World, **changes: Any) -> ReportAnswer:
    return ReportAnswer(report(PlanStatus.model_validate(world.status("small")["plans"][0]), **changes))


def test_some_of_the_reports_verify_nothing_and_who_is_missing_is_told(two: World) -> None:
    answers(two, agreeing(two), None)
    told = two.condition("small", "Verified")
    assert (told["status"], told["reason"]) == ("Unknown", "AwaitingReport")
    assert "1 of 2 workers have reported" in told["message"]
    assert "-r1-s0-a0 is awaited" in told["message"]
    assert two.condition("small", "Ready")["status"] == "True"
    answers(two, agreeing(two), agreeing(two))
    assert two.condition("small", "Verified")["message"] == "2 workers run what was planned"


def test_one_report_that_disagrees_is_told_before_the_others_have_come(two: World) -> None:
    answers(two, None, agreeing(two, tensor_parallel=2))
    assert two.condition("small", "Verified")["reason"] == "EffectiveConfigMismatch"


def test_each_stage_of_a_replica_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = CAPABILITIES.model_copy(update={"max_pipeline_parallel": 2, "multi_node": True})
    monkeypatch.setattr("plimsoll.cluster.case.CAPABILITIES", wide)
    world = World(gpu_node("g1"), gpu_node("g2"))
    world.serve("small", parallelism={"pipeline": 2})
    answers(world, agreeing(world), None)
    told = world.condition("small", "Verified")
    assert told["status"] == "Unknown"
    assert "-r0-s1-a0 is awaited" in told["message"]
    answers(world, agreeing(world), agreeing(world, stage=1))
    assert world.condition("small", "Verified")["status"] == "True"
    assert [one["stage"] for one in world.status("small")["measured"]] == [0, 1]


def test_a_restarted_operator_writes_nothing_while_the_answers_come_in(two: World) -> None:
    first, second = agreeing(two), agreeing(two)
    answers(two, first, second)
    two.restart()
    for told in ((None, None), (first, None), (first, second)):
        before = len(two.history)
        answers(two, *told)
        assert two.history[before:] == [], told


def test_a_replica_that_came_later_is_not_verified_by_those_before_it(two: World) -> None:
    answers(two, agreeing(two), agreeing(two))
    two.nodes["h"] = gpu_node("h")
    two.edit("small", replicas=3)
    two.settle()
    two.run_pods()
    two.settle()
    assert "2 of 3 workers have reported" in two.condition("small", "Verified")["message"]
    two.restart()
    two.reports.clear()
    two.settle()
    assert two.condition("small", "Verified")["status"] == "Unknown"


def test_a_worker_that_restarted_while_nobody_looked_is_read_anew(two: World) -> None:
    answers(two, agreeing(two), agreeing(two))
    two.restart()
    two.reports.clear()
    [container] = two.worker_pods()[0]["status"]["containerStatuses"]
    container["restartCount"] = 1
    two.settle()
    assert two.condition("small", "Verified")["status"] == "Unknown"


def test_a_worker_that_goes_is_not_waited_for(two: World) -> None:
    answers(two, agreeing(two), agreeing(two))
    going = max(two.worker_pods(), key=lambda pod: str(pod["metadata"]["name"]))
    two.reports.pop(going["metadata"]["uid"])
    two.terminate(going)
    two.settle()
    assert two.condition("small", "Verified")["message"] == "the worker runs what was planned"


# --- over sockets


@contextmanager
def worker(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(body: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return respond


def drip(opening: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Goes on behind `opening` a byte at a time."""

    def respond(request: BaseHTTPRequestHandler) -> None:
        try:
            request.wfile.write(opening)
            while True:
                request.wfile.write(b"x")
                request.wfile.flush()
                threading.Event().wait(0.05)
        except OSError:
            return

    return respond


def test_a_report_over_http(plan: PlanStatus) -> None:
    with worker(reply(report(plan).to_json().encode())) as port:
        assert read_report("127.0.0.1", port=port).report == report(plan)


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        pytest.param(reply(b"not found", 404), "answered 404", id="404"),
        pytest.param(reply(b"<html>"), "is no report", id="not JSON"),
        pytest.param(reply(b'{"version": "v1", "planId": 7}'), "is no report", id="nonsense"),
        pytest.param(reply(b" " * (BYTES + 1)), f"larger than {BYTES} bytes", id="huge"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\n\r\n"), "took longer than 0.3 s", id="endless"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX-Endless: "), "took longer than 0.3 s", id="endless headers"),
    ],
)
def test_what_is_no_report_becomes_a_sentence(
    respond: Callable[[BaseHTTPRequestHandler], None], words: str
) -> None:
    with worker(respond) as port:
        told = read_report("127.0.0.1", port=port, seconds=0.3)
    assert told.report is None
    assert words in told.problem


def test_nobody_listening_becomes_a_sentence() -> None:
    with worker(reply(b"")) as port:
        pass
    assert "cannot be read" in read_report("127.0.0.1", port=port).problem


# --- when to ask


class Asked:
    """Counts readings and lets the test wait for each."""

    def __init__(self, told: ReportAnswer) -> None:
        self.told = told
        self.done = threading.Semaphore(0)
        self.count = 0

    def read(self, address: str) -> ReportAnswer:
        self.count += 1
        return self.told


@pytest.fixture
def pod(world: World) -> OwnPod:
    [found, *_] = world.worker_pods()
    return own_pod(found, found["metadata"]["ownerReferences"][0], "g")


def test_a_pod_is_asked_once_again_after_a_pause_and_after_a_restart(pod: OwnPod, plan: PlanStatus) -> None:
    now = [0.0]
    answered = threading.Semaphore(0)
    asked = Asked(ReportAnswer(None, "refused"))
    reports = Reports(answered.release, read=asked.read, monotonic=lambda: now[0])

    def ask(pod: OwnPod) -> None:
        reports.ask([pod])

    ask(pod)
    assert answered.acquire(timeout=5)
    ask(pod)
    assert asked.count == 1
    assert reports.next_due() == FIRST_RETRY_SECONDS

    now[0] = FIRST_RETRY_SECONDS
    asked.told = ReportAnswer(report(plan))
    ask(pod)
    assert answered.acquire(timeout=5)
    assert reports.answers() == {pod.uid: asked.told}
    assert reports.next_due() == FIRST_RETRY_SECONDS + REFRESH_SECONDS

    asked.told = ReportAnswer(report(plan, kv_cache_tokens=16))
    ask(replace(pod, container=replace(pod.container, restarts=1)))
    assert answered.acquire(timeout=5)
    assert asked.count == 3

    reports.ask([])
    assert not reports.answers()
    reports.close()


def test_a_pod_that_waits_for_its_turn_is_not_asked_for_a_second_time(pod: OwnPod) -> None:
    now, reading, answered = [0.0], threading.Event(), threading.Semaphore(0)
    asked = Asked(ReportAnswer(None, "refused"))

    def read(address: str) -> ReportAnswer:
        reading.wait(10)
        return asked.read(address)

    reports = Reports(answered.release, read=read, monotonic=lambda: now[0])
    for _ in range(5):
        now[0] += LONGEST_RETRY_SECONDS
        reports.ask([pod])
    assert reports.next_due() is None, "nobody needs a round before it has answered"
    reading.set()
    assert answered.acquire(timeout=10)
    reports.close()
    assert asked.count == 1


def test_a_reading_that_breaks_becomes_a_sentence_and_is_tried_again(pod: OwnPod) -> None:
    answered = threading.Semaphore(0)

    def read(address: str) -> ReportAnswer:
        raise RuntimeError("a fault of ours")

    reports = Reports(answered.release, read=read, monotonic=lambda: 0.0)
    reports.ask([pod])
    assert answered.acquire(timeout=10)
    assert "a fault of ours" in reports.answers()[pod.uid].problem
    assert reports.next_due() == FIRST_RETRY_SECONDS
    reports.close()
