"""What an option costs, as one number: so the costs of several replicas and deployments add up, and the
cheapest of all is one comparison."""

from __future__ import annotations

from plimsoll.api.v1alpha1 import Objective
from plimsoll.planning.latency import Latency

SIZE_CLASS_BYTES = 8 << 30
"""GPUs are of one size when they round to the same multiple: an H100 has 79.6 GiB, an A100 80.0."""
MIB = 1 << 20
NANOSECONDS = 10**9
UNKNOWN = 10**12
"""In place of a time that cannot be predicted: dearer than any that can."""


def cost(
    *,
    objective: int,
    price: int,
    stages: int,
    gpus: int,
    loss: int,
    memory: int,
    capability: tuple[int, int],
) -> int:
    """Of one replica: what the objective counts, its price where prices are known, then whether it spans
    nodes, its GPUs, what it rounds away, the size of its GPUs and their generation. A GPU with less memory,
    or of an older generation with about the same, costs less everywhere. Each part is wide enough to hold its
    sum over a plan."""
    parts = (
        (objective, 0),
        (price, 32),
        (stages - 1, 24),
        (gpus, 24),
        (loss, 24),
        (gpus * round(memory / SIZE_CLASS_BYTES), 32),
        (gpus * (capability[0] * 10 + capability[1]), 32),
        (gpus * (memory // MIB), 48),
    )
    total = 0
    for amount, bits in parts:
        total = (total << bits) + amount
    return total


def counted(objective: Objective, *, loss: int, gpus: int, latency: Latency | None) -> int:
    """What the objective counts before all else, less is better. Latency: microseconds per output token.
    Throughput: nanoseconds of a GPU for each token."""
    match objective:
        case Objective.FEWEST_GPUS:
            return 0
        case Objective.QUALITY:
            return loss
        case Objective.LATENCY:
            return latency.time_per_output_token_microseconds if latency else UNKNOWN
        case Objective.THROUGHPUT:
            return gpus * NANOSECONDS // max(1, latency.tokens_per_second) if latency else UNKNOWN
