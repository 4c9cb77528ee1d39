"""How fast an option will be, and which of the workload's targets it misses.

Rooflines are made once for a configuration on a kind of GPU; a plan asks for them only where the spec speaks
of time, and for what it has chosen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, Predicted
from plimsoll.inventory.gpu_class import GPUClass
from plimsoll.model.facts import ModelFacts
from plimsoll.planning import words
from plimsoll.planning.hardware import hardware
from plimsoll.planning.latency import TOKEN_BUDGETS, Latency, Limit, Roofline, Targets, largest_batch
from plimsoll.sizing.configuration import Configuration, Workload

MICROSECONDS = 1000
"""In a millisecond."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of all sequences that were asked for, at once."""

    latency: Latency
    missed: Limit | None = None
    """The target that is not kept."""
    sequences: int = 0
    """The most that keep the targets; told where `missed` is."""

    @property
    def predicted(self) -> Predicted:
        """As status tells it."""
        return Predicted(
            time_per_output_token_microseconds=self.latency.time_per_output_token_microseconds,
            time_to_first_token_microseconds=self.latency.time_to_first_token_microseconds,
            tokens_per_second=self.latency.tokens_per_second,
            basis=self.latency.basis.value,
        )


class Forecaster:
    """Forecasts for one plan."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Roofline | None] = {}

    def loads(
        self, spec: LLMDeploymentSpec, facts: ModelFacts, config: Configuration, gpu: GPUClass, load: Workload
    ) -> Iterator[Workload]:
        """The workload with each token budget that is worth trying, the best first. What keeps the targets
        with the first may keep them with a smaller one that takes less memory."""
        roofline = self._roofline(facts, config, gpu)
        if spec.workload.max_batched_tokens or roofline is None or not has_targets(spec):
            yield load
            return
        most = load.max_context_tokens * load.max_sequences
        budgets = [budget for budget in TOKEN_BUDGETS if budget < most] + [most]
        while budgets:
            batch = largest_batch(
                roofline,
                _targets(spec),
                context_tokens=mean_context(spec, load),
                most_sequences=load.max_sequences,
                token_budgets=budgets,
            )
            yield replace(load, max_batched_tokens=batch.batched_tokens)
            budgets = [budget for budget in budgets if budget < batch.batched_tokens]

    def forecast(
        self, spec: LLMDeploymentSpec, facts: ModelFacts, config: Configuration, gpu: GPUClass, load: Workload
    ) -> Forecast | None:
        """None where the GPU's speed is not known."""
        roofline = self._roofline(facts, config, gpu)
        if roofline is None:
            return None
        context = mean_context(spec, load)
        latency = roofline.predict(
            context_tokens=context, sequences=load.max_sequences, batched_tokens=load.max_batched_tokens
        )
        if not has_targets(spec):
            return Forecast(latency)
        batch = largest_batch(
            roofline,
            _targets(spec),
            context_tokens=context,
            most_sequences=load.max_sequences,
            batched_tokens=load.max_batched_tokens,
        )
        if batch.sequences == load.max_sequences:
            return Forecast(latency)
        return Forecast(latency, batch.binds, batch.sequences)

    def _roofline(self, facts: ModelFacts, config: Configuration, gpu: GPUClass) -> Roofline | None:
        """Facts are told apart by identity: the snapshot keeps them alive."""
        key = id(facts), config, gpu.product, gpu.memory_bytes
        if key not in self._known:
            found = hardware(gpu.product, gpu.memory_bytes)
            self._known[key] = Roofline(facts, config, found) if found else None
        return self._known[key]


def mean_context(spec: LLMDeploymentSpec, load: Workload) -> int:
    """Tokens of the sequences that times are predicted for."""
    return min(spec.workload.mean_context_tokens or load.max_context_tokens, load.max_context_tokens)


def has_targets(spec: LLMDeploymentSpec) -> bool:
    return _targets(spec) != Targets()


def _targets(spec: LLMDeploymentSpec) -> Targets:
    asked = spec.workload.targets
    step, first = asked.time_per_output_token_milliseconds, asked.time_to_first_token_milliseconds
    return Targets(
        time_per_output_token=step and step * MICROSECONDS, time_to_first_token=first and first * MICROSECONDS
    )


def missed_words(spec: LLMDeploymentSpec, forecast: Forecast, load: Workload) -> str:
    """Which target is missed, by how much, and how many sequences would keep it."""
    asked, latency = spec.workload.targets, forecast.latency
    if forecast.missed is Limit.TTFT:
        what, field = "time to first token", "timeToFirstTokenMilliseconds"
        time, target = latency.time_to_first_token_microseconds, asked.time_to_first_token_milliseconds
    else:
        what, field = "time per output token", "timePerOutputTokenMilliseconds"
        time, target = latency.time_per_output_token_microseconds, asked.time_per_output_token_milliseconds
    sequences = words.count(load.max_sequences, "sequence")
    fewer = (
        f"would keep it with workload.maxConcurrentSequences: {forecast.sequences}"
        if forecast.sequences
        else "misses it even for one sequence"
    )
    return (
        f"{sequences} of {mean_context(spec, load)} tokens: predicted {what} {time / MICROSECONDS:.1f} ms, "
        f"workload.targets.{field} is {target}; {fewer}"
    )
