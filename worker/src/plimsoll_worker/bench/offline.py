"""The engine without its server: how many tokens a second, on made-up prompts of given lengths.

decode       sequences of `context` tokens: tokens a second while all decode, from the last one's first
             token to the first one's end
prefill      one prompt, submitted to first token
throughput   many requests at once, submitted to last token: prefill and decode mixed
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.graphs import DecodeGraphs
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import SamplingParams, Sequence, TokenEvent

REPEATS = 3
DECODE_TOKENS = 128
PROFILED_KERNELS = 16
WORKLOAD_TEMPERATURE = 0.6

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """Lengths in tokens."""

    prompt: int
    answer: int


class Offline:
    """A runner and its books, to be asked again and again."""

    def __init__(self, runner: ModelRunner, seed: int = 0) -> None:
        self._runner = runner
        self._random = random.Random(seed)  # noqa: S311 - prompts of no meaning
        self._asked = 0

    def run(self, requests: list[Request], temperature: float) -> Run:
        """Answer all requests at once; no prompt was seen before."""
        scheduler = Scheduler(
            BlockPool(self._runner.cache.blocks, self._runner.cache.block_size),
            max_sequences=self._runner.max_sequences,
            max_batched_tokens=self._runner.max_batched_tokens,
        )
        engine = Engine(self._runner, scheduler)
        run = Run(len(requests))
        for request in requests:
            self._asked += 1
            params = SamplingParams(max_tokens=request.answer, temperature=temperature, seed=self._asked)
            vocabulary = self._runner.model.config.vocab_size
            prompt = tuple(self._random.choices(range(vocabulary), k=request.prompt))
            engine.submit(Sequence(f"bench-{self._asked}", prompt, params, run.hearer()))
        run.begin()
        engine.settle()
        run.end(scheduler.preemptions)
        return run

    def step_seconds(self, requests: list[Request]) -> float | None:
        """Device time of a decode step of all the requests together, without what lies between steps; None:
        it has no graph."""
        plain = self._runner.graphs
        size = plain.bucket(len(requests))
        if size is None or not torch.cuda.is_available():
            return None
        timed = TimedGraphs(plain)
        self._runner.graphs = timed
        try:
            self.run(requests, 0.0)
        finally:
            self._runner.graphs = plain
        torch.cuda.synchronize()
        steps: list[float] = [begin.elapsed_time(end) / 1000 for begin, end in timed.steps[size]]
        return median(steps)


class TimedGraphs(DecodeGraphs):
    """Marks where the device begins and ends each step."""

    def __init__(self, graphs: DecodeGraphs) -> None:
        super().__init__(graphs.sizes)
        self.steps: dict[int, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)
        self._graphs = graphs

    def forward(self, size: int) -> None:
        self._begin = _mark()
        self._graphs.forward(size)

    def sample(self, size: int) -> None:
        self._graphs.sample(size)
        self.steps[size].append((self._begin, _mark()))


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class Run:
    """When tokens came."""

    def __init__(self, requests: int) -> None:
        self.tokens = 0
        self.preemptions = 0
        self._silent = requests
        self._began = self._ended = 0.0
        self._decoding: tuple[float, int] | None = None
        """Time and tokens when the last sequence had its first token."""
        self._first_end: tuple[float, int] | None = None
        """Time and tokens when the first sequence ended."""

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self, preemptions: int) -> None:
        self._ended = time.perf_counter()
        self.preemptions = preemptions

    def hearer(self) -> Callable[[TokenEvent], None]:
        """What one sequence tells its tokens to."""
        heard = False

        def hear(event: TokenEvent) -> None:
            nonlocal heard
            self.tokens += 1
            if not heard:
                heard = True
                self._silent -= 1
                if self._silent == 0:
                    self._decoding = time.perf_counter(), self.tokens
            if event.finish is not None and self._first_end is None:
                self._first_end = time.perf_counter(), self.tokens

        return hear

    @property
    def seconds(self) -> float:
        return self._ended - self._began

    @property
    def decode_rate(self) -> float:
        """Tokens a second while all decode."""
        assert self._decoding is not None, "not every sequence was answered"
        assert self._first_end is not None, "no sequence has ended"
        (began, before), (ended, after) = self._decoding, self._first_end
        assert after > before, "some sequences ended before others began; ask for longer answers"
        return (after - before) / (ended - began)


def decode(offline: Offline, *, batch: int, context: int, tokens: int = DECODE_TOKENS) -> Json:
    """Greedy decoding of `batch` sequences that begin at `context` tokens.

    `deviceSecondsPerStep` is what the device works on one step: what is missing to the time of a step, in
    which it has nothing to do, is `idlePermille`.
    """
    requests = [Request(context, tokens + 1)] * batch
    found = _median(
        lambda: offline.run(requests, 0.0).decode_rate,
        {"batch": batch, "contextTokens": context, "decodedTokens": tokens},
        "tokensPerSecond",
    )
    step = offline.step_seconds(requests)
    if step is not None:
        found["deviceSecondsPerStep"] = round(step, 7)
        found["idlePermille"] = round(1000 * (1 - step * found["tokensPerSecond"] / batch))
    return found


def prefill(offline: Offline, *, tokens: int) -> Json:
    """One prompt of `tokens` tokens, to its first token."""
    return _median(
        lambda: offline.run([Request(tokens, 1)], 0.0).seconds, {"promptTokens": tokens}, "seconds"
    )


def throughput(
    offline: Offline, requests: list[Request], *, temperature: float, profile: bool = False
) -> Json:
    """Output tokens a second over all requests at once; with `profile` once more, to see where the device's
    time goes."""
    preemptions = []

    def rate() -> float:
        run = offline.run(requests, temperature)
        preemptions.append(run.preemptions)
        return run.tokens / run.seconds

    facts = {
        "requests": len(requests),
        "promptTokens": sum(request.prompt for request in requests),
        "answerTokens": sum(request.answer for request in requests),
        "temperature": temperature,
    }
    found = _median(rate, facts, "outputTokensPerSecond")
    found["preemptions"] = max(preemptions)
    if profile:
        found["profile"] = device_time(lambda: offline.run(requests, temperature))
    return found


def device_time(work: Callable[[], Run]) -> Json:
    """Milliseconds by kernel, the longest first, and of the whole. Kernels that start while the one before
    still runs count twice for as long."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as told:
        run = work()
    kernels = sorted(told.key_averages(), key=lambda each: each.self_device_time_total, reverse=True)
    return {
        "wholeMilliseconds": round(1000 * run.seconds, 1),
        "kernels": [
            {
                "name": each.key[:100],
                "calls": each.count,
                "milliseconds": round(each.self_device_time_total / 1000, 1),
            }
            for each in kernels[:PROFILED_KERNELS]
        ],
    }


def uniform_requests() -> list[Request]:
    """256 requests, prompts and answers uniform from 100 to 1024, seed 0: the workload of nano-vllm's
    bench.py (142,827 tokens in, 133,966 out), drawn in its order."""
    drawn = random.Random(0)  # noqa: S311 - the same lengths for everyone
    prompts = []
    for _ in range(256):
        length = drawn.randint(100, 1024)
        prompts.append(length)
        for _ in range(length):
            drawn.randint(0, 10000)
    return [Request(prompt, drawn.randint(100, 1024)) for prompt in prompts]


def _median(measure: Callable[[], float], facts: Json, key: str) -> Json:
    """The median of REPEATS, after one that does not count."""
    measure()
    found = [measure() for _ in range(REPEATS)]
    return {**facts, key: round(median(found), 5), "all": [round(each, 5) for each in found]}
