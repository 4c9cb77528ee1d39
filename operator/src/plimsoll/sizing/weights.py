"""Bytes of the weights as the engine keeps them: elements counted in the headers times the width of the
precision; or the bytes of a quantized checkpoint as they are stored.

A checkpoint and what is loaded differ: a tied head stored a second time is kept once, a block-quantized GGUF
is widened to the precision that the engine computes in or kept in the engine's forms, a vision tower and
prediction layers stay in the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup
from plimsoll.sizing.parallel import rank_share
from plimsoll.sizing.quantized import layer_parts
from plimsoll.sizing.schemes import Quantized, Stored, blocks_of, scheme_of
from plimsoll_worker.launch import Device, Precision

FLOATS = frozenset({"F32", "F16", "BF16"})
"""Element types of what is not packed."""
_EXACT = {"BF16": Precision.BF16, "F16": Precision.FP16}
NOT_LOADED = frozenset({Role.VISION, Role.MTP})
"""Roles that stay in the files: the engine serves text and does not speculate."""


def native_precision(facts: ModelFacts, device: Device = Device.GPU) -> Precision:
    """The narrowest precision that represents the checkpoint exactly.

    All matrices BF16 give BF16, all F16 give FP16; anything else, F32, a mixture or block-quantized, gives
    FP32. Vectors (norms, biases) do not count: converters widen them to F32 whatever the matrices are. Of a
    quantized safetensors checkpoint it is the precision of what was left unquantized, which is the one that
    others compute in. CPU kernels compute in FP32, so on a CPU it is always FP32.
    """
    if device is Device.CPU:
        return Precision.FP32
    stored = {group.dtype for group in _matrices(facts)}
    if facts.quantization:
        stored &= {*_EXACT, "F32"}
    return _EXACT.get(stored.pop(), Precision.FP32) if len(stored) == 1 else Precision.FP32


def beside_quantized(native: Precision, device: Device = Device.GPU) -> Precision:
    """What is kept in 16 bit beside quantized matrices; on a CPU in what its kernels compute in."""
    return native if native.bytes == 2 or device is Device.CPU else Precision.BF16


def _matrices(facts: ModelFacts) -> Iterator[TensorGroup]:
    yield from (group for group in facts.outer if group.role in (Role.EMBEDDING, Role.HEAD))
    for layer in facts.layers:
        smallest_matrix = facts.hidden * max(1, layer.key_dim)
        for group in layer.groups:
            if group.role not in (Role.NORM, Role.REPLICATED) and group.elements >= smallest_matrix:
                yield group


Kept = Precision | Quantized | Stored | None
"""One precision for all; matrices in a scheme, or as a quantized checkpoint has them, and the rest in a
precision; or byte by byte as in the files."""


def unquantized(kept: Kept) -> Precision | None:
    """What tensors outside the layers are kept in."""
    return kept.rest if isinstance(kept, Quantized | Stored) else kept


def loaded_bytes(facts: ModelFacts, precision: Kept) -> int:
    """What the engine keeps of the whole model, unsharded: the tied head once, no tower, no prediction
    layers. `precision` None: byte by byte as in the files."""
    kept = [
        group
        for group in facts.outer
        if group.role not in NOT_LOADED and not (facts.tied and group.role is Role.HEAD)
    ]
    layers = sum(layer.count * layer_bytes(facts, layer, 1, precision) for layer in facts.layers)
    return sum(group_bytes(group, unquantized(precision)) for group in kept) + layers


def group_bytes(group: TensorGroup, precision: Precision | None) -> int:
    """Bytes of a whole group at a precision; None: as stored."""
    return group.bytes if precision is None else group.elements * precision.bytes


def rank_bytes(
    group: TensorGroup,
    facts: ModelFacts,
    layer: LayerClass | None,
    tensor: int,
    precision: Precision | None,
) -> int:
    """Bytes of a group on the fullest rank, whole elements rounded up."""
    held, of = rank_share(group, facts, layer, tensor)
    whole, width = (group.bytes, 1) if precision is None else (group.elements, precision.bytes)
    return -(-whole * held // of) * width


def layer_bytes(facts: ModelFacts, layer: LayerClass, tensor: int, precision: Kept) -> int:
    """Bytes of one layer's weights on one rank."""
    if isinstance(precision, Quantized):
        return layer_parts(facts, layer, tensor, precision).total(precision)
    if isinstance(precision, Stored):
        return sum(stored_parts(facts, layer, tensor, precision.rest).values())
    return sum(rank_bytes(group, facts, layer, tensor, precision) for group in layer.groups)


def stored_parts(facts: ModelFacts, layer: LayerClass, tensor: int, rest: Precision) -> dict[str, int]:
    """Bytes of one layer of a quantized checkpoint on one rank, by what they are of: an element type of the
    files, or what is kept in `rest`."""
    parts: Counter[str] = Counter()
    for group in layer.groups:
        kept = _packed_bytes(facts, layer, group, tensor, rest)
        if kept is None:
            parts[f"kept in {rest}"] += rank_bytes(group, facts, layer, tensor, rest)
        else:
            parts[f"of {group.dtype}"] += kept
    return dict(parts)


def _packed_bytes(
    facts: ModelFacts, layer: LayerClass, group: TensorGroup, tensor: int, rest: Precision
) -> int | None:
    """Of a group that stays packed; None where it does not."""
    if facts.format == "gguf":
        return _block_bytes(facts, layer, group, tensor, rest)
    if group.dtype in FLOATS:
        return None
    if facts.packed is None:
        return rank_bytes(group, facts, layer, tensor, None)
    kept = Quantized(scheme_of(facts.packed), rest)
    return layer_parts(facts, layer.model_copy(update={"groups": (group,)}), tensor, kept).total(kept)


def _block_bytes(
    facts: ModelFacts, layer: LayerClass, group: TensorGroup, tensor: int, rest: Precision
) -> int | None:
    """Of a GGUF file: rows and ranks hold whole groups of columns."""
    scheme = blocks_of(group)
    if scheme is None:
        return None
    held, of = rank_share(group, facts, layer, tensor)
    numbers = -(-group.elements * held // of)
    return scheme.packed_bytes(numbers) + scheme.scale_bytes(numbers, rest)


def outer_bytes(facts: ModelFacts, tensor: int, roles: Iterable[Role], precision: Precision | None) -> int:
    """Bytes of the outer tensors with these roles on one rank."""
    wanted = set(roles)
    return sum(
        rank_bytes(group, facts, None, tensor, precision) for group in facts.outer if group.role in wanted
    )


def outer_roles(facts: ModelFacts, *, first: bool, last: bool) -> tuple[Role, ...]:
    """Which outer tensors a stage holds: the embedding on the first, head and last norm on the last.

    A tied head is the embedding: one copy where a stage is both first and last, otherwise a second copy on
    the last.
    """
    roles: list[Role] = []
    if first or (last and facts.tied):
        roles.append(Role.EMBEDDING)
    if last:
        roles.append(Role.NORM)
        if not facts.tied:
            roles.append(Role.HEAD)
    return tuple(roles)


def largest_tensor_elements(facts: ModelFacts) -> int:
    """Elements of the largest single tensor, from above: what loading holds besides what is already in
    place."""
    outer = max(
        (group.elements for group in facts.outer if group.role not in NOT_LOADED), default=facts.hidden
    )
    return max(outer, facts.hidden * facts.intermediate)
