"""Prometheus metrics under vLLM's names, so that its dashboards, autoscalers and the Gateway API inference
extension work unchanged. Buckets follow vLLM's `v1/metrics/loggers.py`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from plimsoll_worker.engine.engine import EngineStats

FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
BETWEEN_TOKENS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
WHOLE_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class Metrics:
    """One worker's metrics. `stats` is asked at every scrape."""

    def __init__(self, model: str, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._stats = stats
        self._model = model
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.preemptions = self._gauge("num_preemptions_total", "Sequences that gave their blocks back.")
        self.prefix_queries = self._gauge(
            "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_hits = self._gauge("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.")
        self.running = self._gauge("num_requests_running", "Sequences in the batch.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences in the queue.")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.")
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Request to first token.", FIRST_TOKEN
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Token to token.", BETWEEN_TOKENS
        )
        self.request = self._histogram("e2e_request_latency_seconds", "Request to last token.", WHOLE_REQUEST)
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )

    def ended(self, reason: str) -> None:
        """Count a request that ended well."""
        self._success.labels(self._model, reason).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        stats = self._stats()
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.kv_usage.set(stats.kv_usage)
        self.preemptions.set(stats.preemptions)
        self.prefix_queries.set(stats.prefix_queries)
        self.prefix_hits.set(stats.prefix_hits)
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"vllm:{name}", what, ("model_name",), registry=self._registry).labels(self._model)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"vllm:{name}", what, ("model_name",), registry=self._registry).labels(self._model)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"vllm:{name}", what, ("model_name",), buckets=buckets, registry=self._registry
        ).labels(self._model)
