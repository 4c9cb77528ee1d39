"""Tensors + blueprint → ModelFacts: every tensor gets its role, and nothing may be missing or left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from plimsoll.model.blueprint import Blueprint, Layer, Tensor
from plimsoll.model.closed_form import ClosedForm, Key
from plimsoll.model.errors import FormatUnsupported
from plimsoll.model.facts import Divisor, LayerClass, ModelFacts, Role, State, TensorGroup
from plimsoll.model.quantization.config import kept_as
from plimsoll.model.source import StoredTensor
from plimsoll.model.stored import Ledger, Naming

Counts = tuple[Counter[Key], Counter[Key]]


def assemble(
    blueprint: Blueprint,
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
    ledger = Ledger(blueprint, naming, where)
    total = 0
    for tensor in tensors:
        ledger.add(tensor)
        total += tensor.bytes
    ledger.finish()
    return _facts(
        blueprint, ledger.outer, ledger.layers, checkpoint_bytes=total, naming=naming, revision=revision,
        file=file, quantization=_method(blueprint) if ledger.packed or blueprint.quantization else "",
    )  # fmt: skip


def assemble_closed_form(blueprint: Blueprint, *, where: str, revision: str) -> ModelFacts:
    """ModelFacts by the hyper-parameters alone. Raises as ClosedForm does."""
    form = ClosedForm(blueprint, where)
    try:
        outer = form.outer()
        layers = [form.layer(index) for index in range(len(blueprint.layers))]
    except ValueError as error:
        raise FormatUnsupported(f"{where}: {error} is not read from config.json alone") from error
    total = sum(outer[1].values()) + sum(sum(sizes.values()) for _, sizes in layers)
    return _facts(
        blueprint, outer, layers, checkpoint_bytes=total, naming="safetensors", revision=revision, file="",
        quantization=form.scheme.method if form.scheme is not None else "",
    )  # fmt: skip


def _method(blueprint: Blueprint) -> str:
    method = (blueprint.quantization or {}).get("quant_method")
    return method[:40] if isinstance(method, str) and method else "packed"


def _facts(
    blueprint: Blueprint,
    outer: Counts,
    layers: Sequence[Counts],
    *,
    checkpoint_bytes: int,
    naming: Naming,
    revision: str,
    file: str,
    quantization: str,
) -> ModelFacts:
    outer_groups = _groups(*outer)
    classes = _layer_classes(blueprint, layers)
    uncounted = sum(_uncounted(layer.tensors) for layer in blueprint.layers) + _uncounted(blueprint.outer)
    return ModelFacts(
        architecture=blueprint.architecture,
        format=naming,
        revision=revision,
        file=file,
        quantization=quantization,
        packed=kept_as(blueprint.quantization or {}, "quantization_config") if quantization else None,
        parameters=_parameters(blueprint, outer_groups, classes) - uncounted,
        checkpoint_bytes=checkpoint_bytes,
        hidden=blueprint.hidden,
        intermediate=blueprint.intermediate,
        expert_width=max(layer.feed_forward.active_width for layer in blueprint.layers),
        divisors=_divisors(blueprint) + (_group_divisors(blueprint) if quantization else ()),
        heads=blueprint.heads,
        vocab=blueprint.vocab,
        max_position=blueprint.max_position,
        tied=blueprint.tied,
        outer=outer_groups,
        layers=classes,
    )


def _uncounted(tensors: Iterable[Tensor]) -> int:
    """Buffers that lie in the layers' groups but are no parameters."""
    return sum(
        tensor.elements * tensor.copies
        for tensor in tensors
        if not tensor.counted and tensor.required and tensor.role is not Role.MTP
    )


def _divisors(blueprint: Blueprint) -> tuple[Divisor, ...]:
    found: dict[str, int] = {}
    for layer in dict.fromkeys(blueprint.layers):
        found |= dict(layer.mixer.divisors) | dict(layer.feed_forward.divisors)
    return tuple(Divisor(what=what, count=count) for what, count in found.items())


def _group_divisors(blueprint: Blueprint) -> tuple[Divisor, ...]:
    """A rank cuts rows of the down projection: between groups of numbers that share a scale, or it cannot
    tell its scales apart."""
    quantization = blueprint.quantization or {}
    group = quantization.get("group_size")
    block = quantization.get("weight_block_size")
    if isinstance(block, list) and block and isinstance(block[-1], int):
        group = block[-1]
    if not isinstance(group, int) or isinstance(group, bool) or group < 1:
        return ()
    whole = -(-blueprint.intermediate // group)
    return (Divisor(what=f"groups of {group} in the intermediate width", count=whole),)


def _groups(elements: Counter[Key], sizes: Counter[Key]) -> tuple[TensorGroup, ...]:
    return tuple(
        TensorGroup(role=role, dtype=dtype, elements=count, bytes=sizes[role, dtype])
        for (role, dtype), count in sorted(elements.items())
    )


def _layer_classes(blueprint: Blueprint, counts: Sequence[Counts]) -> tuple[LayerClass, ...]:
    made: dict[tuple[int, int], tuple[Layer, tuple[TensorGroup, ...]]] = {}
    described = []
    for layer, (elements, sizes) in zip(blueprint.layers, counts, strict=True):
        # Layers that share their counts share their groups; headers give each layer counts of its own.
        key = (id(layer), id(elements))
        if key not in made:
            made[key] = (layer, _groups(elements, sizes))
        described.append(made[key])
    return tuple(
        _layer_class(layer, groups, len(list(run)))
        for (layer, groups), run in groupby(described, key=lambda pair: pair)
    )


def _layer_class(layer: Layer, groups: tuple[TensorGroup, ...], count: int) -> LayerClass:
    mixer = layer.mixer
    return LayerClass(
        count=count,
        kv_heads=mixer.kv_heads,
        key_dim=mixer.key_dim,
        value_dim=mixer.value_dim,
        window=mixer.window,
        index_bytes=mixer.index_bytes,
        states=tuple(State(elements=elements, dtype=dtype) for elements, dtype in mixer.states),
        groups=groups,
    )


def _parameters(blueprint: Blueprint, outer: Iterable[TensorGroup], layers: Iterable[LayerClass]) -> int:
    distinct = sum(
        group.elements
        for group in outer
        if group.role is not Role.MTP and not (blueprint.tied and group.role is Role.HEAD)
    )
    return distinct + sum(layer.count * sum(group.elements for group in layer.groups) for layer in layers)
