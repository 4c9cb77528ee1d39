"""Bytes of the weights as the engine keeps them: elements counted in the headers times the width of the
precision.

A checkpoint and what is loaded differ: a tied head stored a second time is kept once, and a block-quantized
GGUF is widened to the precision that the engine computes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup
from plimsoll.sizing.parallel import rank_elements
from plimsoll_worker.launch import Device, Precision

_EXACT = {"BF16": Precision.BF16, "F16": Precision.FP16}


def native_precision(facts: ModelFacts, device: Device = Device.GPU) -> Precision:
    """The narrowest precision that represents the checkpoint exactly.

    All matrices BF16 give BF16, all F16 give FP16; anything else, F32, a mixture or block-quantized, gives
    FP32. Vectors (norms, biases) do not count: converters widen them to F32 whatever the matrices are. CPU
    kernels compute in FP32, so on a CPU it is always FP32.
    """
    if device is Device.CPU:
        return Precision.FP32
    stored = {group.dtype for group in _matrices(facts)}
    return _EXACT.get(stored.pop(), Precision.FP32) if len(stored) == 1 else Precision.FP32


def _matrices(facts: ModelFacts) -> Iterator[TensorGroup]:
    yield from (group for group in facts.outer if group.role is not Role.NORM)
    for layer in facts.layers:
        smallest_matrix = facts.hidden * layer.key_dim
        yield from (g for g in layer.groups if g.role is not Role.NORM and g.elements >= smallest_matrix)


def loaded_bytes(facts: ModelFacts, precision: Precision) -> int:
    """What the engine keeps of the whole model, unsharded: the tied head once."""
    outer = sum(group.elements for group in facts.outer if not (facts.tied and group.role is Role.HEAD))
    layers = sum(layer.count * sum(group.elements for group in layer.groups) for layer in facts.layers)
    return (outer + layers) * precision.bytes


def layer_elements(facts: ModelFacts, layer: LayerClass, tensor: int) -> int:
    """Elements of one layer on one rank."""
    return sum(rank_elements(group, facts, layer, tensor) for group in layer.groups)


def outer_elements(facts: ModelFacts, tensor: int, roles: Iterable[Role]) -> int:
    """Elements of the outer tensors with these roles on one rank."""
    wanted = set(roles)
    return sum(rank_elements(group, facts, None, tensor) for group in facts.outer if group.role in wanted)


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
    outer = max(group.elements for group in facts.outer)
    return max(outer, facts.hidden * facts.intermediate)
