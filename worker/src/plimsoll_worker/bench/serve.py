"""A running server under load, seen by a real client: first token, token to token, whole request.

Open loop: requests come as a Poisson process at `--request-rate`, whether or not others are answered; this is
what users do, and the only way to see queues grow. Closed loop: `--max-concurrency` clients, each with one
request at a time; it finds the capacity. Metrics are defined and named as in vLLM's serving benchmark
(`vllm/benchmarks/serve.py`), so figures of both may be laid side by side:

    ttft    request sent to first token
    tpot    (request's latency - ttft) / (output tokens - 1)
    itl     token to token
    e2el    request sent to last token

Several processes share the load: one reads 20 thousand tokens a second at the most, and others' answers must
not wait for it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import fmean, median, pstdev
from typing import Any

from plimsoll_worker.bench.client import Refused, StreamingClient

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

    def shares(self, processes: int) -> list[Load]:
        """The same load as that of several clients, none without a request: Poisson processes of a part of
        the rate are one of the whole."""
        at_once = self.requests if self.max_concurrency is None else self.max_concurrency
        count = max(1, min(processes, self.requests, at_once))
        return [
            replace(
                self,
                requests=_share(self.requests, number, count),
                request_rate=self.request_rate / count,
                max_concurrency=None if self.max_concurrency is None else _share(at_once, number, count),
                seed=self.seed * count + number,
            )
            for number in range(count)
        ]


@dataclass(slots=True)
class Heard:
    """What one client saw; seconds."""

    prompt_tokens: int
    output_tokens: int = 0
    ttft: float = 0.0
    latency: float = 0.0
    itl: list[float] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a client process heard, and when, by a clock that all processes of a machine share."""

    heard: list[Heard]
    began: float
    ended: float
    cpu_seconds: float


def measure(load: Load, processes: int = 1) -> Json:
    """Send all requests, wait for all answers; the results under vLLM's keys, and `client_cpu_seconds`."""
    shares = load.shares(processes)
    answers = [asyncio.run(_answers(load))] if len(shares) == 1 else _together(shares)
    duration = max(each.ended for each in answers) - min(each.began for each in answers)
    found = results(load, [one for each in answers for one in each.heard], duration)
    return {**found, "client_cpu_seconds": sum(each.cpu_seconds for each in answers)}


def _together(shares: list[Load]) -> list[Answers]:
    """All at once, when all are there."""
    spawn = get_context("spawn")
    pipes = [spawn.Pipe() for _ in shares]
    processes = [
        spawn.Process(target=_client, args=(share, theirs), daemon=True)
        for share, (_, theirs) in zip(shares, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    ours = [pipe for pipe, _ in pipes]
    for _, theirs in pipes:
        theirs.close()  # so that one that dies ends its pipe
    for pipe in ours:
        pipe.recv()
    for pipe in ours:
        pipe.send(None)
    answers = [pipe.recv() for pipe in ours]
    for process in processes:
        process.join()
    return answers


def _client(load: Load, pipe: Connection) -> None:
    pipe.send(None)
    pipe.recv()
    pipe.send(asyncio.run(_answers(load)))


async def _answers(load: Load) -> Answers:
    turn = asyncio.Semaphore(load.max_concurrency or load.requests)
    client = StreamingClient(load.url)
    began, worked = time.perf_counter(), time.process_time()
    tasks = [asyncio.create_task(_ask(client, turn, body)) async for body in _arrivals(load)]
    heard = await asyncio.gather(*tasks)
    ended, busy = time.perf_counter(), time.process_time() - worked
    client.close()
    return Answers(list(heard), began, ended, busy)


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


async def _ask(client: StreamingClient, turn: asyncio.Semaphore, body: Json) -> Heard:
    heard = Heard(len(body["prompt"]))
    async with turn:
        began = last = time.perf_counter()
        try:
            async for data in client.events("/v1/completions", body):
                if data == b"[DONE]":
                    continue
                event = json.loads(data)
                now = time.perf_counter()
                if "error" in event:
                    heard.error = event["error"]["message"]
                elif event["choices"]:
                    _note(heard, now, began, last)
                    last = now
                if event.get("usage"):
                    heard.output_tokens = event["usage"]["completion_tokens"]
        except Refused as error:
            heard.error = str(error)
        except (OSError, EOFError) as error:
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


def _share(whole: int, number: int, count: int) -> int:
    """What the `number`-th of `count` gets."""
    return whole // count + (number < whole % count)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Between the two nearest values, as numpy's default does."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
