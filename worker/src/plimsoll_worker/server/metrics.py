"""Prometheus metrics under vLLM's names, so that its dashboards, autoscalers and the Gateway API inference
extension work unchanged. Buckets: those of OpenTelemetry's conventions for generative AI where it has any,
with finer ones below for GPUs, else vLLM's (`v1/metrics/loggers.py`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from plimsoll_worker.engine.engine import EngineStats
from plimsoll_worker.server.messages import Opened

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WHOLE_REQUEST = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 240)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Gaps(Collector):
    """A histogram of what comes with every token: prometheus_client's own takes 2 µs for an observation, a
    twentieth of what a token costs the server. For one thread."""

    def __init__(self, name: str, what: str, model: str, buckets: tuple[float, ...]) -> None:
        self._name, self._what, self._model = name, what, model
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As Prometheus has it: each bucket counts what the smaller ones do."""
        family = HistogramMetricFamily(self._name, self._what, labels=("model_name",))
        bounds = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        family.add_metric((self._model,), buckets, self._sum)
        yield family


class Metrics:
    """One worker's metrics."""

    def __init__(self, model: str, opened: Opened) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.tokens = 0
        """Generated since the last exposition."""
        self._preemptions = self._gauge("num_preemptions_total", "Sequences that gave their blocks back.")
        self._queries = self._gauge("prefix_cache_queries_total", "Prompt tokens looked up in the cache.")
        self._hits = self._gauge("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.")
        self._running = self._gauge("num_requests_running", "Sequences in the batch.")
        self._waiting = self._gauge("num_requests_waiting", "Sequences in the queue.")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.")
        self.step_tokens = self._histogram("iteration_tokens_total", "Tokens computed a step.", STEP_TOKENS)
        self.first_token = self._histogram("time_to_first_token_seconds", "To first token.", FIRST_TOKEN)
        self.between_tokens = Gaps("vllm:inter_token_latency_seconds", "Token to token.", model, PER_TOKEN)
        self._registry.register(self.between_tokens)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "A request's mean from token to token.", PER_TOKEN
        )
        self.request = self._histogram("e2e_request_latency_seconds", "To last token.", WHOLE_REQUEST)
        self.queued = self._histogram("request_queue_time_seconds", "To first step.", WHOLE_REQUEST)
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "First step to first token.", WHOLE_REQUEST
        )
        self.decode = self._histogram(
            "request_decode_time_seconds", "First token to last token.", WHOLE_REQUEST
        )
        self.prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.answer_length = self._histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        facts = Gauge(
            "vllm:cache_config_info",
            "How the KV cache is divided.",
            ("model_name", "block_size", "num_gpu_blocks"),
            registry=self._registry,
        )
        facts.labels(model, opened.block_size, opened.blocks).set(1)

    def ended(self, reason: str) -> None:
        """Count a request that ended well."""
        self._success.labels(self._model, reason).inc()

    def exposition(self, stats: EngineStats) -> bytes:
        """The text that Prometheus scrapes, with the engine's state at this moment."""
        self._generation_tokens.inc(self.tokens)
        self.tokens = 0
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._kv_usage.set(stats.kv_usage)
        self._preemptions.set(stats.preemptions)
        self._queries.set(stats.prefix_queries)
        self._hits.set(stats.prefix_hits)
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"vllm:{name}", what, ("model_name",), registry=self._registry).labels(self._model)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"vllm:{name}", what, ("model_name",), registry=self._registry).labels(self._model)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"vllm:{name}", what, ("model_name",), buckets=buckets, registry=self._registry
        ).labels(self._model)
