"""What the model has to do and how it may be cut and rounded for that: the fields that options are made
from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from plimsoll.api.v1alpha1.fields import Model, Rule


class Objective(StrEnum):
    """What is best of all that fits."""

    FEWEST_GPUS = "FewestGPUs"
    QUALITY = "Quality"
    LATENCY = "Latency"
    THROUGHPUT = "Throughput"

    @property
    def predicted(self) -> bool:
        """Whether options are compared by predicted times."""
        return self in (Objective.LATENCY, Objective.THROUGHPUT)


class Targets(Model):
    """Predicted times that a plan must keep while all sequences are served. Options that miss them are
    rejected."""

    time_per_output_token_milliseconds: Annotated[int, Field(ge=1, le=60_000)] | None = None
    """Longest time between two tokens of a sequence, in milliseconds. Default: any."""
    time_to_first_token_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """Longest time to the first token of a prompt of maxContextTokens (meanContextTokens where it is given),
    in milliseconds. Default: any."""


class Workload(Model):
    """What must fit into memory at the same time, and how fast it must be."""

    max_context_tokens: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Longest sequence, prompt and answer together, in tokens. Default: the model's limit, at most 8192."""
    max_concurrent_sequences: Annotated[int, Field(ge=1, le=1024)] = 8
    """Sequences served at the same time. Default: 8."""
    mean_context_tokens: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Mean length of the sequences that are served at the same time, in tokens: the KV cache is sized for so
    many tokens each, and always for one sequence of full length. Default: all at full length."""
    max_batched_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Most tokens of one forward pass (the prefill chunk). Default: planned."""
    targets: Targets = Field(default_factory=Targets)
    """Predicted times that a plan must keep."""
    objective: Objective = Objective.FEWEST_GPUS
    """FewestGPUs: of all that fits the cheapest, and of equally many GPUs the highest precision. Quality: the
    highest precision that fits. Latency: the least predicted time per output token. Throughput: the most
    predicted tokens a second for each GPU. Default: FewestGPUs."""

    RULES = (
        Rule(
            "!has(self.meanContextTokens) || !has(self.maxContextTokens) || "
            "self.meanContextTokens <= self.maxContextTokens",
            lambda workload: (
                (workload.mean_context_tokens or 0)
                <= (workload.max_context_tokens or workload.mean_context_tokens or 0)
            ),
            "meanContextTokens is more than maxContextTokens: write the mean, maxContextTokens or less",
        ),
    )


class WeightsPrecision(StrEnum):
    """Precision of the weights in device memory."""

    AUTO = "Auto"
    NATIVE = "Native"
    FP32 = "FP32"
    BF16 = "BF16"
    FP8 = "FP8"
    INT8 = "INT8"
    INT4 = "INT4"


class PrecisionFloor(StrEnum):
    """The lowest precision that may be chosen."""

    NATIVE = "Native"
    BF16 = "BF16"
    FP8 = "FP8"
    INT8 = "INT8"
    INT4 = "INT4"


class KVCachePrecision(StrEnum):
    """Precision of keys and values."""

    AUTO = "Auto"
    NATIVE = "Native"
    FP8 = "FP8"


class Quantization(Model):
    """Precision of what is kept in device memory."""

    weights: WeightsPrecision = WeightsPrecision.AUTO
    """Auto: planned, never below `floor`. Native keeps every weight exactly: 16-bit checkpoints in 16 bit,
    quantized checkpoints as they are stored, quantized GGUF files and, on a CPU, all that is not quantized in
    FP32. The others convert while loading. Default: Auto."""
    floor: PrecisionFloor = PrecisionFloor.NATIVE
    """The lowest precision that Auto may choose, in the order of what rounding costs: Native, BF16, INT8,
    FP8, INT4. Default: Native, nothing is ever lost unasked."""
    kv_cache: KVCachePrecision = KVCachePrecision.NATIVE
    """Native: keys and values in the precision that the engine computes in. FP8: half the bytes. Auto: FP8
    where that is better for the objective. Default: Native."""

    RULES = (
        Rule(
            "!has(self.floor) || self.floor == 'Native' || !has(self.weights) || self.weights == 'Auto'",
            lambda asked: asked.floor is PrecisionFloor.NATIVE or asked.weights is WeightsPrecision.AUTO,
            "floor is for weights: Auto: remove floor, or write weights: Auto",
        ),
    )


class MultiNode(StrEnum):
    """Whether a replica may span nodes."""

    IF_NEEDED = "IfNeeded"
    NEVER = "Never"


class Parallelism(Model):
    """How a replica is cut over GPUs."""

    tensor: Annotated[int, Field(ge=1, le=16)] | None = None
    """GPUs of one node that share each layer. Default: planned."""
    pipeline: Annotated[int, Field(ge=1, le=64)] | None = None
    """Stages of consecutive layers. Default: planned."""
    multi_node: MultiNode = MultiNode.IF_NEEDED
    """IfNeeded: stages may run on different nodes. Never: all stages of a replica run on one node. Default:
    IfNeeded."""
