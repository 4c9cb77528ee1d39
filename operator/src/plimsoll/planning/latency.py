"""How long a token takes: a roofline over what one forward pass moves and computes, corrected by what was
measured where it was.

    time of a pass = max(weights / bandwidth, operations / rate) + cache / bandwidth
                   + launches + sampling + collectives of tensor parallel + hops between stages

Every term grows with the batch and with the context, so a target is met up to a number of sequences and by no
larger one, and bisection finds it. Efficiencies are those that vLLM 0.22 showed on one H100 and one H200
(the table stands in tests/unit/planning/test_latency.py); an engine that is slower or faster is told by its
own calibration. A database of operator timings for each card and engine was rejected: it ends where its cards
end, and half a dozen constants come within 10 % of all that we measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from plimsoll.model.facts import ModelFacts
from plimsoll.planning.forward import ForwardPass
from plimsoll.planning.hardware import Hardware
from plimsoll.sizing.configuration import Configuration
from plimsoll_worker.launch import Precision

SECOND = 10**9
"""Nanoseconds: times are integers of them until they are told."""

# Fitted to vLLM 0.22.0 (FlashAttention 3, CUDA graphs) on one H100 and one H200, 2026-11-23, 8B and 0.6B
# shapes in BF16, batches of 1, 32 and 128. Again: time the decode steps of three batch sizes on two cards
# that differ in bandwidth only, and solve for the four.
BANDWIDTH_PERMILLE = 840
"""Of the datasheet's bandwidth: 93 % of what a copy reaches on the same cards, and what a matrix-vector
product reaches."""
STEP_NANOSECONDS = 600_000
LAYER_NANOSECONDS = 20_000
"""The two together were measured at 28 and 32 layers, which cannot tell them apart: the division is ours."""
SEQUENCE_NANOSECONDS = 10_000
"""Sampling and bookkeeping of one sequence."""
MATRIX_PERMILLE, ATTENTION_PERMILLE = 640, 460
"""Of the datasheet's rate, from prefill of 8192 tokens: attention is an eighth of the 8B shape's operations
and half of the 0.6B shape's."""

# Published, H100 with two GPUs, one-shot all-reduce: 7 µs for 0.5 MB, 9 for 1 MB, 13 for 2 MB (vLLM #24111).
# PCIe and network are assumed, not measured.
NVLINK_NANOSECONDS, PCIE_NANOSECONDS, NETWORK_NANOSECONDS = 7_000, 30_000, 50_000
LINK_PERMILLE = 700
NETWORK_BANDWIDTH = 10 * 10**9
"""Bytes a second between the nodes of a replica's stages."""
COLLECTIVES = 2
"""All-reduces of a layer: after attention and after the MLP. Embedding and logits add one each."""

TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
"""Prefill chunks that are chosen from."""
USUAL_BUDGET = 2048
"""The chunk where no target asks for another: it keeps the arithmetic busy, and activations grow with it."""


class Basis(StrEnum):
    """What a prediction rests on."""

    ROOFLINE = "Roofline"
    CALIBRATED = "Calibrated"


class Bound(StrEnum):
    """What takes most of a decoding step."""

    MEMORY_BANDWIDTH = "MemoryBandwidth"
    COMPUTE = "Compute"
    COMMUNICATION = "Communication"
    OVERHEAD = "Overhead"


class Limit(StrEnum):
    """Why no more sequences are served at once."""

    MEMORY = "Memory"
    """Memory holds no more, or no more were asked for."""
    TPOT = "TimePerOutputToken"
    TTFT = "TimeToFirstToken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured for a configuration, as permille of its roofline."""

    decode_permille: int
    prefill_permille: int

    def __post_init__(self) -> None:
        for name in ("decode_permille", "prefill_permille"):
            if getattr(self, name) < 1:
                raise ValueError(f"calibration: {name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    time_per_output_token_microseconds: int
    """Between two tokens of one sequence while all sequences decode."""
    time_to_first_token_microseconds: int
    """From a free place to the first token of a prompt of full length, read in chunks while the other
    sequences decode."""
    tokens_per_second: int
    """Of all sequences together while they decode."""
    basis: Basis
    binds: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Microseconds; None: no target."""

    time_per_output_token: int | None = None
    time_to_first_token: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The most sequences that keep the targets."""

    sequences: int
    """0: not even one keeps them."""
    batched_tokens: int
    latency: Latency
    """Of these sequences; of one when there are none."""
    binds: Limit


@dataclass(frozen=True, slots=True)
class _Spent:
    """Nanoseconds of one pass."""

    memory: int
    compute: int
    communication: int
    overhead: int

    @property
    def total(self) -> int:
        return self.memory + self.compute + self.communication + self.overhead

    @property
    def most(self) -> Bound:
        named = {
            Bound.MEMORY_BANDWIDTH: self.memory,
            Bound.COMPUTE: self.compute,
            Bound.COMMUNICATION: self.communication,
            Bound.OVERHEAD: self.overhead,
        }
        return max(named, key=named.__getitem__)


class Roofline:
    """Predictions for one configuration on one kind of GPU. Made once for many batches."""

    def __init__(
        self,
        facts: ModelFacts,
        configuration: Configuration,
        hardware: Hardware,
        profile: Calibration | None = None,
    ) -> None:
        self._pass = ForwardPass(facts, configuration)
        self._hardware = hardware
        self._profile = profile
        self._tensor = configuration.tensor_parallel
        self._hops = configuration.pipeline_parallel - 1
        self._bandwidth = hardware.memory_bandwidth * BANDWIDTH_PERMILLE // 1000
        self._matrix_rate = hardware.rate(_computed_in(configuration, hardware)) * MATRIX_PERMILLE // 1000
        self._score_rate = hardware.rate(configuration.weights) * ATTENTION_PERMILLE // 1000

    def predict(self, *, context_tokens: int, sequences: int, batched_tokens: int) -> Latency:
        """`sequences` at `context_tokens` each, prompts read `batched_tokens` at a time."""
        step = self._step(sequences, context_tokens)
        decoding = self._told(step.total, "decode_permille")
        first = self._told(self._prompt(context_tokens, sequences - 1, batched_tokens), "prefill_permille")
        return Latency(
            time_per_output_token_microseconds=decoding,
            time_to_first_token_microseconds=first,
            tokens_per_second=sequences * 10**6 // max(1, decoding),
            basis=Basis.CALIBRATED if self._profile else Basis.ROOFLINE,
            binds=step.most,
        )

    def stall(self, *, context_tokens: int, sequences: int, batched_tokens: int) -> int:
        """Microseconds of a step that reads a whole chunk: how long the others wait for their next token."""
        step = self._step(sequences - 1, context_tokens, chunk=max(1, batched_tokens - (sequences - 1)))
        return self._told(step.total, "prefill_permille")

    def _told(self, nanoseconds: int, kind: str) -> int:
        permille = getattr(self._profile, kind) if self._profile else 1000
        return -(-nanoseconds * permille // (1000 * 1000))

    def _step(self, decoding: int, context: int, *, chunk: int = 0) -> _Spent:
        """One pass: a token of each of `decoding` sequences, and `chunk` tokens of a prompt, whose attention
        is counted by the prompt."""
        work = self._pass
        tokens, rows = decoding + chunk, decoding + (1 if chunk else 0)
        weights = self._read(work.weight_bytes(tokens))
        matrices = work.matrix_operations(tokens, rows) * SECOND // self._matrix_rate
        cache = self._read(decoding * work.cache_bytes(context))
        scores = decoding * work.attention_operations(context) * SECOND // self._score_rate
        return _Spent(
            memory=(weights if weights >= matrices else 0) + (cache if cache >= scores else 0),
            compute=(matrices if matrices > weights else 0) + (scores if scores > cache else 0),
            communication=self._exchanged(tokens),
            overhead=STEP_NANOSECONDS + LAYER_NANOSECONDS * work.layers + SEQUENCE_NANOSECONDS * rows,
        )

    def _prompt(self, prompt: int, others: int, budget: int) -> int:
        """Nanoseconds to read a prompt in chunks while `others` decode. Of several stages one works at a
        time: an engine that overlaps chunks does better."""
        chunk = max(1, budget - others)
        whole, rest = divmod(prompt, chunk)
        steps = whole + (1 if rest else 0)
        total = whole * self._step(others, prompt, chunk=min(chunk, prompt)).total
        if rest:
            total += self._step(others, prompt, chunk=rest).total
        # Every chunk reads again what the chunks before it wrote.
        reread = self._read(self._pass.cache_bytes(prompt) * (steps + 1) // 2)
        scores = self._pass.prompt_operations(prompt) * SECOND // self._score_rate
        return total + max(scores, reread)

    def _exchanged(self, tokens: int) -> int:
        """All-reduces of tensor parallel and hops between stages. A ring moves 2 (t − 1) / t of the bytes."""
        size, spent = tokens * self._pass.hidden_bytes, 0
        if self._tensor > 1:
            start = NVLINK_NANOSECONDS if self._hardware.nvlink else PCIE_NANOSECONDS
            moved = size * 2 * (self._tensor - 1) // self._tensor
            link = self._hardware.link_bandwidth * LINK_PERMILLE // 1000
            spent = (COLLECTIVES * self._pass.layers + 2) * (start + moved * SECOND // link)
        return spent + self._hops * (NETWORK_NANOSECONDS + size * SECOND // NETWORK_BANDWIDTH)

    def _read(self, amount: int) -> int:
        return amount * SECOND // self._bandwidth


def predict(
    facts: ModelFacts,
    configuration: Configuration,
    hardware: Hardware,
    *,
    context_tokens: int,
    sequences: int,
    batched_tokens: int,
    profile: Calibration | None = None,
) -> Latency:
    """What `sequences` of `context_tokens` each will see; `batched_tokens` is the prefill chunk."""
    return Roofline(facts, configuration, hardware, profile).predict(
        context_tokens=context_tokens, sequences=sequences, batched_tokens=batched_tokens
    )


def largest_batch(
    roofline: Roofline,
    targets: Targets,
    *,
    context_tokens: int,
    most_sequences: int,
    batched_tokens: int | None = None,
    token_budgets: Sequence[int] = TOKEN_BUDGETS,
) -> Batch:
    """The most sequences, up to `most_sequences` (what memory holds), that keep the targets, and the token
    budget they keep them with.

    `batched_tokens`: a budget that is given. None: the largest of `token_budgets`, up to the usual one, that
    lets nobody wait longer than the target between two tokens; where prompts take too long so, the next that
    is fast enough.
    """
    budgets = (batched_tokens,) if batched_tokens else tuple(sorted(token_budgets))

    def tried(sequences: int) -> tuple[Limit | None, int, Latency]:
        return _tried(roofline, targets, context_tokens, sequences, budgets)

    low, high, stopped = 0, most_sequences, Limit.MEMORY
    while low < high:
        middle = (low + high + 1) // 2
        missed, _, _ = tried(middle)
        if missed is None:
            low = middle
        else:
            high, stopped = middle - 1, missed
    _, budget, latency = tried(max(1, low))
    return Batch(sequences=low, batched_tokens=budget, latency=latency, binds=stopped)


def _tried(
    roofline: Roofline, targets: Targets, context: int, sequences: int, budgets: Sequence[int]
) -> tuple[Limit | None, int, Latency]:
    """(the target that is missed, the budget, the prediction) for a number of sequences."""
    step, first = targets.time_per_output_token, targets.time_to_first_token
    calm = (
        budget
        for budget in reversed(budgets)
        if budget <= USUAL_BUDGET
        and (
            step is None
            or roofline.stall(context_tokens=context, sequences=sequences, batched_tokens=budget) <= step
        )
    )
    start = next(calm, budgets[0])
    tried: list[tuple[int, Latency]] = []
    for budget in budgets[budgets.index(start) :]:
        latency = roofline.predict(context_tokens=context, sequences=sequences, batched_tokens=budget)
        if step is not None and latency.time_per_output_token_microseconds > step:
            return Limit.TPOT, budget, latency
        if first is None or latency.time_to_first_token_microseconds <= first:
            return None, budget, latency
        tried.append((budget, latency))
    budget, latency = min(tried, key=lambda pair: pair[1].time_to_first_token_microseconds)
    return Limit.TTFT, budget, latency


def _computed_in(configuration: Configuration, hardware: Hardware) -> Precision:
    """FP8 weights are multiplied in FP8 where the GPU has units for it; other quantized ones are widened."""
    scheme = configuration.scheme
    if scheme is not None and scheme.name == Precision.FP8 and Precision.FP8 in hardware.operations:
        return Precision.FP8
    return configuration.weights
