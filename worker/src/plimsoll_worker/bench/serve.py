"""A running server under load, seen by a real client: first token, token to token, whole request.

Open loop: requests come as a Poisson process at `--request-rate`, whether or not others are answered; this is
what users do, and the only way to see queues grow. Closed loop: `--max-concurrency` clients, each with one
request at a time; it finds the capacity. Metrics are defined and named as in vLLM's serving benchmark
(`vllm/benchmarks/serve.py`), so figures of both may be laid side by side:

    ttft    request sent to first token
    tpot    (request's latency - ttft) / (output tokens - 1)
    itl     token to token
    e2el    request sent to last token
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, pstdev
from typing import Any

import httpx

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What clients ask for."""

    url: str
    """Of the server, without /v1."""
    model: str
    requests: int
    request_rate: float
    """Mean requests a second; infinity: all at once."""
    max_concurrency: int | None
    """Most requests on their way at a time; None: no limit."""
    prompt_tokens: tuple[int, int]
    """Fewest and most, drawn evenly."""
    answer_tokens: tuple[int, int]
    vocabulary: int
    """Token ids of prompts are below."""
    temperature: float
    seed: int


@dataclass(slots=True)
class Heard:
    """What one client saw; seconds."""

    prompt_tokens: int
    output_tokens: int = 0
    ttft: float = 0.0
    latency: float = 0.0
    itl: list[float] = field(default_factory=list)
    error: str = ""


async def measure(load: Load) -> Json:
    """Send all requests, wait for all answers; the results under vLLM's keys."""
    turn = asyncio.Semaphore(load.max_concurrency or load.requests)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=load.url, timeout=None, limits=limits) as client:  # noqa: S113 - it waits as long as it takes
        began = time.perf_counter()
        tasks = [asyncio.create_task(_ask(client, turn, body)) async for body in _arrivals(load)]
        heard = await asyncio.gather(*tasks)
        return results(load, heard, time.perf_counter() - began)


async def _arrivals(load: Load) -> AsyncIterator[Json]:
    """Bodies of requests, each at its time."""
    draw = random.Random(load.seed)  # noqa: S311 - prompts of no meaning
    due = time.perf_counter()
    for _ in range(load.requests):
        yield {
            "model": load.model,
            "prompt": draw.choices(range(load.vocabulary), k=draw.randint(*load.prompt_tokens)),
            "max_tokens": draw.randint(*load.answer_tokens),
            "temperature": load.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # Against the clock, not from one sleep to the next: lateness must not add up.
        due += draw.expovariate(load.request_rate) if load.request_rate != float("inf") else 0.0
        await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _ask(client: httpx.AsyncClient, turn: asyncio.Semaphore, body: Json) -> Heard:
    heard = Heard(len(body["prompt"]))
    async with turn:
        began = last = time.perf_counter()
        try:
            async with client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    heard.error = f"{response.status_code}: {(await response.aread()).decode()}"
                    return heard
                async for line in response.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        heard.error = event["error"]["message"]
                        return heard
                    now = time.perf_counter()
                    if event["choices"]:
                        _note(heard, now, began, last)
                        last = now
                    if event.get("usage"):
                        heard.output_tokens = event["usage"]["completion_tokens"]
        except httpx.TransportError as error:
            heard.error = f"{type(error).__name__}: {error}"
    heard.latency = last - began
    return heard


def _note(heard: Heard, now: float, began: float, last: float) -> None:
    if heard.ttft == 0.0:
        heard.ttft = now - began
    else:
        heard.itl.append(now - last)


def results(load: Load, heard: Sequence[Heard], duration: float) -> Json:
    """vLLM's keys; times in milliseconds, throughput in tokens a second."""
    answered = [each for each in heard if not each.error]
    prompts = sum(each.prompt_tokens for each in answered)
    answers = sum(each.output_tokens for each in answered)
    tpot = [
        (each.latency - each.ttft) / (each.output_tokens - 1) for each in answered if each.output_tokens > 1
    ]
    rate = load.request_rate
    return {
        "num_prompts": load.requests,
        "request_rate": rate if rate != float("inf") else "inf",
        "max_concurrency": load.max_concurrency,
        "duration": duration,
        "completed": len(answered),
        "failed": len(heard) - len(answered),
        "errors": sorted({each.error for each in heard if each.error}),
        "total_input_tokens": prompts,
        "total_output_tokens": answers,
        "request_throughput": len(answered) / duration,
        "output_throughput": answers / duration,
        "total_token_throughput": (prompts + answers) / duration,
        **_spread("ttft", [each.ttft for each in answered]),
        **_spread("tpot", tpot),
        **_spread("itl", [gap for each in answered for gap in each.itl]),
        **_spread("e2el", [each.latency for each in answered]),
    }


def _spread(name: str, seconds: Sequence[float]) -> Json:
    ordered = sorted(1000 * each for each in seconds) or [0.0]
    return {
        f"mean_{name}_ms": fmean(ordered),
        f"median_{name}_ms": median(ordered),
        f"std_{name}_ms": pstdev(ordered),
        **{f"p{percent}_{name}_ms": _percentile(ordered, percent) for percent in (50, 90, 95, 99)},
    }


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Between the two nearest values, as numpy's default does."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
