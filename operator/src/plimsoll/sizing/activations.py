"""Peak bytes of one forward pass besides weights and KV cache.

Two peaks are counted: inside a layer, where a chunk of `tokens` passes attention or the MLP, and at the end,
where the rows that are sampled become logits. They do not overlap in time. On a GPU the allocator hands the
blocks of one to the other, so the larger counts; on a CPU it does not, so they are added.

Attention differs by device: kernels on a GPU read the paged cache where it lies, and only a lone long prompt
has its keys and values gathered; the CPU path gathers each sequence's and masks them.
"""

from __future__ import annotations

from plimsoll.model.facts import LayerClass, ModelFacts, Role
from plimsoll.sizing.parallel import kv_heads_per_rank
from plimsoll.sizing.quantized import EXPERT_WIDTH, SHARED_WIDTHS, widths_of
from plimsoll_worker.launch import Device, Precision

RESIDUAL_COPIES = 2
"""The residual stream and its normed copy are alive together."""
MLP_COPIES = 3
"""gate, up and their product."""
SAMPLING_BYTES = 4 + 4
"""Per logit: FP32 logits and probabilities, besides the logits in the compute precision."""
SORTED_ROWS = 32
"""A GPU sorts so many rows at a time for top-p."""
SORTED_BYTES = 40
"""Per logit of a sorted row: values, indices and sums of both sides of the sort. H100, engine 0.2.0: besides
the rows' logits and probabilities 43 bytes with 64 rows of 128,256, 36 with 128 of 152,064 and 22 with 256 of
151,936."""
MASK_BYTES = 1
"""Per query and key: true where a query may look. The kernel widens it to the compute precision once more."""

WIDENED_BYTES = 64 << 20
WIDENED_FROM = {Precision.INT8: 1024, Precision.INT4: 384}
"""What a step holds more when a GPU widens weights by pieces for cuBLAS, and from how many tokens on it does:
H100, engine 0.3.0, Llama-3.1-8B, 8192 tokens, INT8 and INT4 alike."""


def layer_peak(
    facts: ModelFacts, *, tokens: int, context: int, precision: Precision, tensor: int, device: Device
) -> tuple[int, str]:
    """Bytes alive inside the widest layer for a chunk of `tokens` at the end of `context` tokens, on one
    rank, and the formula with its numbers.

    tokens × width × 2 hidden + the larger of attention (q, k, v and output of the chunk; the gathered K and V
    of the whole context; on a CPU the mask) and MLP (tokens × width × 3 intermediate; a row of the chunk is
    there once more for each expert that it passes).
    """
    width, heads = precision.bytes, facts.heads // tensor
    kv = max(kv_heads_per_rank(layer, tensor) * (layer.key_dim + layer.value_dim) for layer in facts.layers)
    projected = max(2 * heads * layer.key_dim for layer in facts.layers) + kv
    recurrent = max(_recurrent_width(facts, layer) for layer in facts.layers)
    experts = MLP_COPIES * facts.expert_width // tensor + _experts_passed(facts) * facts.hidden
    mlp = max(MLP_COPIES * facts.intermediate // tensor, experts, recurrent // tensor)
    queries, mask = min(tokens, context), MASK_BYTES + width if device is Device.CPU else 0
    attention = tokens * width * projected + queries * context * mask + context * kv * width
    size = tokens * width * RESIDUAL_COPIES * facts.hidden + max(attention, tokens * width * mlp)
    if attention > tokens * width * mlp:
        masked = f"{queries} × {context} mask × {mask} B + " if mask else ""
        gathered = f"{masked}{context} × {kv} K, V × {width} B"
        wider = f"{projected} attention) + {gathered}"
    else:
        wider = f"{mlp} MLP)"
    return size, f"{tokens} tokens × {width} B × ({RESIDUAL_COPIES} × {facts.hidden} hidden + {wider}"


def rounding_peak(facts: ModelFacts, *, tokens: int, matrices: Precision) -> tuple[int, str]:
    """Bytes that a GPU holds more inside a layer because matrices have fewer bits, and the formula: pieces of
    them made wide, or with FP8 the chunk's activations in FP8 too (H100, engine 0.3.0: 32 MiB for 8192 tokens
    of Llama-3.1-8B)."""
    if matrices is Precision.FP8:
        return tokens * facts.hidden, f"{tokens} tokens × {facts.hidden} hidden × 1 B in FP8"
    if tokens < WIDENED_FROM[matrices]:
        return 0, ""
    return WIDENED_BYTES, f"{WIDENED_BYTES} B of weights made wide"


def _experts_passed(facts: ModelFacts) -> int:
    """By a token; 0 where the model has none."""
    each, shared = widths_of(facts, EXPERT_WIDTH), sum(widths_of(facts, *SHARED_WIDTHS))
    return (facts.expert_width - shared) // each[0] if each else 0


def _recurrent_width(facts: ModelFacts, layer: LayerClass) -> int:
    """What a token is projected to in a recurrent layer, elements: its matrices hold hidden × that many."""
    return sum(group.elements for group in layer.groups if group.role is Role.RECURRENT) // facts.hidden


def logits_peak(facts: ModelFacts, *, rows: int, precision: Precision, device: Device) -> tuple[int, str]:
    """Bytes of logits and sampling for `rows` sequences; the whole vocabulary is gathered on one rank."""
    per_logit, vocab = precision.bytes + SAMPLING_BYTES, facts.vocab
    told = f"{rows} sequences × {vocab} vocabulary × {per_logit} B"
    if device is Device.CPU:
        return rows * vocab * per_logit, told
    sorted_rows = min(rows, SORTED_ROWS)
    size = rows * vocab * per_logit + sorted_rows * vocab * SORTED_BYTES
    return size, f"{told} + {sorted_rows} sorted × {vocab} × {SORTED_BYTES} B"
