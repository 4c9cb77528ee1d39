"""How a model is cut: which tensor-parallel sizes are possible, and which layers each pipeline stage gets.

An impossible cut is refused here, with the numbers in the sentence, before any pod exists: engines find out
only after the GPUs are held (a vocabulary, a head count or a quantization group that does not divide is a
load error there).

    ValueError
      └── ParallelRefused   the model cannot be cut this way
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup


class ParallelRefused(ValueError):
    """The model cannot be cut this way; the message names the numbers that do not divide."""


def check_parallel(facts: ModelFacts, *, tensor: int, pipeline: int) -> None:
    """Raise ParallelRefused unless the model divides over `tensor` ranks and `pipeline` stages.

    Query heads and the intermediate width must divide; KV heads divide, or are replicated when the ranks are
    a multiple of them; the vocabulary is padded, so it always divides.
    """
    if tensor < 1 or pipeline < 1:
        raise ParallelRefused(f"tensor parallel {tensor} and pipeline parallel {pipeline} must be at least 1")
    if pipeline > facts.layer_count:
        raise ParallelRefused(
            f"{pipeline} pipeline stages for {facts.layer_count} layers: each stage needs one"
        )
    if facts.heads % tensor:
        raise ParallelRefused(f"{facts.heads} attention heads do not divide by tensor parallel {tensor}")
    if facts.intermediate % tensor:
        raise ParallelRefused(
            f"intermediate width {facts.intermediate} does not divide by tensor parallel {tensor}"
        )
    for divisor in facts.divisors:
        if divisor.count % tensor:
            raise ParallelRefused(f"{divisor.count} {divisor.what} do not divide by tensor parallel {tensor}")
    for layer in facts.layers:
        if layer.kv_heads and layer.kv_heads % tensor and tensor % layer.kv_heads:
            raise ParallelRefused(
                f"{layer.kv_heads} KV heads neither divide by tensor parallel {tensor} nor divide it"
            )


def kv_heads_per_rank(layer: LayerClass, tensor: int) -> int:
    """KV heads one rank holds: a share, or one replicated head when there are more ranks than heads.

    A latent (MLA) is one head, so every rank holds it whole; a layer that caches nothing has none.
    """
    return max(1, layer.kv_heads // tensor) if layer.kv_heads else 0


def rank_share(
    group: TensorGroup, facts: ModelFacts, layer: LayerClass | None, tensor: int
) -> tuple[int, int]:
    """The part of `group` that one rank holds (the fullest rank), as numerator and denominator. `layer` is
    None for the model's outer tensors."""
    match group.role:
        case Role.NORM | Role.REPLICATED | Role.VISION | Role.MTP:
            return 1, 1
        case Role.EMBEDDING | Role.HEAD:
            return -(-facts.vocab // tensor), facts.vocab
        case Role.ATTENTION_KV:
            assert layer is not None, "KV projections belong to a layer"
            # A layer that reuses the keys of another may still carry projections of its own.
            return max(1, layer.kv_heads // tensor), max(1, layer.kv_heads)
        case Role.ATTENTION_Q | Role.MLP | Role.EXPERT | Role.RECURRENT:
            return 1, tensor


def split_stages(weights: Sequence[int], stages: int) -> tuple[tuple[int, int], ...]:
    """Cut layers into contiguous stages so that the fullest is as small as it can be.

    `weights`: bytes of each layer in order, the embedding counted into the first and the head into the last.
    Returns (first, last) per stage, last exclusive. The least possible maximum is found by bisection over the
    greedy filling, which is optimal for contiguous pieces.
    """
    ends = list(accumulate(weights))
    largest, mean = max(weights), -(-ends[-1] // stages)
    # Greedy filling never passes the mean by a whole layer.
    low, high = max(largest, mean), mean + largest
    while low < high:
        middle = (low + high) // 2
        if _pieces(ends, middle, stages) <= stages:
            high = middle
        else:
            low = middle + 1
    ranges: list[tuple[int, int]] = []
    first = held = 0
    for index, weight in enumerate(weights):
        remaining_layers = len(weights) - index
        remaining_stages = stages - len(ranges) - 1
        if index > first and (held + weight > low or remaining_layers == remaining_stages):
            ranges.append((first, index))
            first, held = index, 0
        held += weight
    ranges.append((first, len(weights)))
    assert len(ranges) == stages, f"split {len(weights)} layers into {len(ranges)} stages, wanted {stages}"
    return tuple(ranges)


def _pieces(ends: Sequence[int], limit: int, most: int) -> int:
    """Pieces that greedy filling needs, `most` + 1 when more; `ends` are the running sums."""
    pieces, held = 0, 0
    while held < ends[-1] and pieces <= most:
        held = ends[bisect_right(ends, held + limit) - 1]
        pieces += 1
    return pieces
