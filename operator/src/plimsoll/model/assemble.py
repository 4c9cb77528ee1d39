"""Tensors + hyper-parameters → ModelFacts: every tensor gets its role, and nothing may be missing or left
over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from plimsoll.model.architectures import family
from plimsoll.model.architectures.decoder import Naming, Slot
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable, FormatUnsupported
from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup
from plimsoll.model.hyper_parameters import HyperParameters
from plimsoll.model.safetensors import DTYPE_BYTES
from plimsoll.model.source import StoredTensor

_FLOATS = {"F32", "F16", "BF16"}
_Key = tuple[Role, str]


def assemble(
    hp: HyperParameters,
    tensors: Iterable[StoredTensor],
    *,
    naming: Naming,
    where: str,
    revision: str,
    file: str = "",
) -> ModelFacts:
    """ModelFacts of a checkpoint. `where` is the file or folder that messages name.

    Raises ArchitectureUnsupported for a tensor its family does not have, FileUnreadable for a missing tensor
    or one whose shape the hyper-parameters do not explain, FormatUnsupported for element types that are not
    read.
    """
    slots = {slot.name: slot for slot in family(hp.architecture, where).slots(hp, naming)}
    stored = {tensor.name: tensor for tensor in tensors}
    for slot in slots.values():
        if slot.required and slot.name not in stored:
            raise FileUnreadable(f"{where}: tensor {slot.name} is missing")
    outer: Counter[_Key] = Counter()
    outer_bytes: Counter[_Key] = Counter()
    elements: list[Counter[_Key]] = [Counter() for _ in range(hp.layers)]
    sizes: list[Counter[_Key]] = [Counter() for _ in range(hp.layers)]
    for tensor in stored.values():
        slot = _slot_of(tensor, slots, hp, naming=naming, where=where)
        if not slot.kept:
            continue
        key = (slot.role, tensor.dtype)
        (outer if slot.layer is None else elements[slot.layer])[key] += tensor.elements
        (outer_bytes if slot.layer is None else sizes[slot.layer])[key] += tensor.bytes
    layers = _layer_classes(hp, [_groups(e, b) for e, b in zip(elements, sizes, strict=True)])
    outer_groups = _groups(outer, outer_bytes)
    return ModelFacts(
        architecture=hp.architecture,
        format=naming,
        revision=revision,
        file=file,
        parameters=_parameters(hp, outer_groups, layers),
        checkpoint_bytes=sum(tensor.bytes for tensor in stored.values()),
        hidden=hp.hidden,
        intermediate=hp.intermediate,
        heads=hp.heads,
        vocab=hp.vocab,
        max_position=hp.max_position,
        tied=hp.tied,
        outer=outer_groups,
        layers=layers,
    )


def closed_form(hp: HyperParameters, where: str) -> list[StoredTensor]:
    """The tensors a checkpoint must hold by its hyper-parameters, in the type that config.json names."""
    if hp.dtype is None:
        raise FileUnreadable(
            f"{where}: torch_dtype: expected float32, float16 or bfloat16 when there are no weights"
        )
    tensors = []
    for slot in family(hp.architecture, where).slots(hp, "safetensors"):
        if slot.required:
            elements = slot.shape[0] * (slot.shape[1] if len(slot.shape) > 1 else 1)
            size = elements * DTYPE_BYTES[hp.dtype]
            tensors.append(StoredTensor(slot.name, hp.dtype, slot.shape, elements, size))
    return tensors


def _slot_of(
    tensor: StoredTensor,
    slots: dict[str, Slot],
    hp: HyperParameters,
    *,
    naming: Literal["safetensors", "gguf"],
    where: str,
) -> Slot:
    slot = slots.get(tensor.name)
    if slot is None:
        raise ArchitectureUnsupported(
            f"{where}: tensor {tensor.name[:120]!r} is none that a {hp.architecture} model"
            f" of {hp.layers} layers has"
        )
    if not slot.kept:
        return slot
    if tensor.shape != slot.shape:
        raise FileUnreadable(
            f"{where}: tensor {tensor.name} has shape {list(tensor.shape)},"
            f" by its hyper-parameters it is {list(slot.shape)}"
        )
    if naming == "safetensors" and tensor.dtype not in _FLOATS:
        raise FormatUnsupported(
            f"{where}: tensor {tensor.name} is {tensor.dtype}; weights in F32, F16 and BF16 are read"
        )
    return slot


def _groups(elements: Counter[_Key], sizes: Counter[_Key]) -> tuple[TensorGroup, ...]:
    return tuple(
        TensorGroup(role=role, dtype=dtype, elements=count, bytes=sizes[role, dtype])
        for (role, dtype), count in sorted(elements.items())
    )


def _layer_classes(hp: HyperParameters, layers: Sequence[tuple[TensorGroup, ...]]) -> tuple[LayerClass, ...]:
    return tuple(
        LayerClass(
            count=len(list(run)),
            kv_heads=hp.kv_heads,
            key_dim=hp.key_dim,
            value_dim=hp.value_dim,
            window=window,
            groups=groups,
        )
        for (groups, window), run in groupby(zip(layers, hp.windows, strict=True))
    )


def _parameters(hp: HyperParameters, outer: Iterable[TensorGroup], layers: Iterable[LayerClass]) -> int:
    distinct = sum(group.elements for group in outer if not (hp.tied and group.role is Role.HEAD))
    return distinct + sum(layer.count * sum(group.elements for group in layer.groups) for layer in layers)
