"""The serving benchmark against a running worker, and its figures against ones computed by hand."""

from __future__ import annotations

import pytest
from tests.unit.worker.processes import WorkerProcess

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
    ("rate", "concurrency"), [(20.0, None), (float("inf"), 2)], ids=["open loop", "closed loop"]
)
async def test_all_requests_are_answered_and_counted(
    rate: float, concurrency: int | None, worker: WorkerProcess
) -> None:
    told = await measure(load(worker.url, rate=rate, concurrency=concurrency))
    assert (told["completed"], told["failed"], told["errors"]) == (6, 0, [])
    assert 6 * 4 <= told["total_input_tokens"] <= 6 * 12
    assert 6 * 3 <= told["total_output_tokens"] <= 6 * 6
    assert 0 < told["median_itl_ms"] <= told["p99_itl_ms"]
    assert 0 < told["median_ttft_ms"] < told["mean_e2el_ms"]
    assert told["request_throughput"] == pytest.approx(6 / told["duration"])


async def test_a_request_that_is_refused_is_told_and_not_averaged(worker: WorkerProcess) -> None:
    wrong = load(f"{worker.url}/nowhere")
    told = await measure(wrong)
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
