"""The serving benchmark against a running worker, and its figures against ones computed by hand."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.worker.processes import WorkerProcess

from plimsoll_worker.bench.client import StreamingClient
from plimsoll_worker.bench.serve import Heard, Load, measure, results


def load(url: str, *, rate: float = float("inf"), concurrency: int | None = None) -> Load:
    return Load(
        url=url,
        model="smollm2",
        requests=6,
        request_rate=rate,
        max_concurrency=concurrency,
        prompt_tokens=(4, 12),
        answer_tokens=(3, 6),
        vocabulary=1000,
        temperature=0.0,
        seed=1,
    )


@pytest.mark.parametrize(
    ("rate", "concurrency", "processes"),
    [(20.0, None, 1), (float("inf"), 2, 1), (float("inf"), 4, 2)],
    ids=["open loop", "closed loop", "closed loop, two processes"],
)
def test_all_requests_are_answered_and_counted(
    rate: float, concurrency: int | None, processes: int, worker: WorkerProcess
) -> None:
    told = measure(load(worker.url, rate=rate, concurrency=concurrency), processes)
    assert (told["completed"], told["failed"], told["errors"]) == (6, 0, [])
    assert 6 * 4 <= told["total_input_tokens"] <= 6 * 12
    assert 6 * 3 <= told["total_output_tokens"] <= 6 * 6
    assert 0 < told["median_itl_ms"] <= told["p99_itl_ms"]
    assert 0 < told["median_ttft_ms"] < told["mean_e2el_ms"]
    assert told["request_throughput"] == pytest.approx(6 / told["duration"])
    assert told["client_cpu_seconds"] > 0


def test_clients_share_a_load_and_none_is_without_a_request() -> None:
    whole = load("http://nowhere", rate=9.0, concurrency=4)
    shares = whole.shares(8)
    assert [share.requests for share in shares] == [2, 2, 1, 1]
    assert sum(share.max_concurrency or 0 for share in shares) == 4
    assert sum(share.request_rate for share in shares) == pytest.approx(9.0)
    assert len({share.seed for share in shares}) == 4
    assert whole.shares(1) == [whole]


async def test_a_server_that_leaves_in_the_middle_of_an_answer_is_told() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        # An event in two chunks, then the end before its time.
        writer.write(b"7\r\ndata: {\r\n" + b"3\r\n}\n\n\r\n" + b"ff\r\ndata")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    events = StreamingClient(f"http://{host}:{port}").events("/", {})
    assert await anext(events) == b"{}"
    with pytest.raises(asyncio.IncompleteReadError):
        await anext(events)
    server.close()


def test_a_request_that_is_refused_is_told_and_not_averaged(worker: WorkerProcess) -> None:
    wrong = load(f"{worker.url}/nowhere")
    told = measure(wrong)
    assert (told["completed"], told["failed"]) == (0, 6)
    assert told["errors"][0].startswith("404")
    assert told["mean_ttft_ms"] == 0


def test_figures_are_defined_as_in_vllm() -> None:
    heard = [
        Heard(10, output_tokens=3, ttft=0.1, latency=0.3, itl=[0.1, 0.1]),
        Heard(20, output_tokens=1, ttft=0.3, latency=0.3),
        Heard(30, error="503: gone"),
    ]
    told = results(load("http://nowhere"), heard, duration=2.0)
    assert (told["completed"], told["failed"]) == (2, 1)
    assert (told["total_input_tokens"], told["total_output_tokens"]) == (30, 4)
    assert told["output_throughput"] == 2.0
    assert told["mean_ttft_ms"] == pytest.approx(200)
    assert told["std_ttft_ms"] == pytest.approx(100)
    assert told["p99_ttft_ms"] == pytest.approx(298)
    assert told["mean_tpot_ms"] == pytest.approx(100), "an answer of one token has no time per token"
    assert told["mean_e2el_ms"] == pytest.approx(300)
