"""Whether the weights that a launch plans are what this engine makes, this card multiplies and this
checkpoint holds: told before a weight is read, by the field of the launch."""

from __future__ import annotations

from collections.abc import Iterator

from plimsoll_worker.errors import EffectiveConfigMismatch
from plimsoll_worker.launch import CAPABILITIES, Capabilities, Launch, Precision, WeightsScheme

NEEDED_CAPABILITY = {Precision.BF16: (8, 0), Precision.FP8: (8, 9)}
"""Compute capability from which on tensor cores take the type; the planner has the same
(plimsoll/planning/support.py)."""


def check_weights(
    launch: Launch,
    *,
    checkpoint: str,
    experts: bool,
    capability: tuple[int, int] | None,
    capabilities: Capabilities = CAPABILITIES,
) -> None:
    """checkpoint: the format of a quantized one, empty for others; experts: whether the model has some;
    capability: of the card, None on a CPU.

    Raises EffectiveConfigMismatch naming the launch's field.
    """
    for fault in (
        *_of_scheme(launch.weights),
        *_of_checkpoint(launch, checkpoint),
        *_of_engine(launch, capabilities, experts=experts),
        *_of_card(launch, capability),
    ):
        raise EffectiveConfigMismatch(fault)


def _of_scheme(weights: WeightsScheme) -> Iterator[str]:
    """One scheme for each precision: whoever writes another means something this engine does not do."""
    if weights.checkpoint is not None:
        expected = WeightsScheme.stored(weights.checkpoint, weights.name)
    elif weights.name.computes:
        expected = WeightsScheme.plain(weights.name)
    elif weights.compute is not None and weights.compute.computes:
        expected = WeightsScheme.quantized(weights.name, weights.compute)
    else:
        yield _differs("compute", weights.compute, f"FP32, FP16 or BF16 beside {weights.name}")
        return
    for field, info in type(weights).model_fields.items():
        found, wanted = getattr(weights, field), getattr(expected, field)
        if found != wanted:
            yield _differs(str(info.alias), found, f"{wanted} for {weights.name}")


def _of_engine(launch: Launch, capabilities: Capabilities, *, experts: bool) -> Iterator[str]:
    weights, device = launch.weights, launch.device
    offered = capabilities.weights.get(device, ())
    for field, precision in (("name", weights.name), ("compute", weights.computed_in)):
        if precision not in offered:
            yield _differs(field, precision, f"one of {', '.join(offered)}")
    formats = capabilities.checkpoints.get(device, ())
    if weights.checkpoint is not None and weights.checkpoint not in formats:
        yield _differs("checkpoint", weights.checkpoint, f"one of {', '.join(formats) or 'none'}")
    reduced = not weights.name.computes or weights.checkpoint is not None
    if reduced and experts and not capabilities.quantized_experts:
        yield _differs("name", weights.name, "one that is computed in: experts are kept in no other")


def _of_card(launch: Launch, capability: tuple[int, int] | None) -> Iterator[str]:
    if capability is None:
        return
    for field, precision in (("name", launch.weights.name), ("compute", launch.weights.computed_in)):
        needed = NEEDED_CAPABILITY.get(precision)
        if needed is not None and capability < needed:
            least, has = (".".join(map(str, numbers)) for numbers in (needed, capability))
            yield _differs(
                field, precision, f"another: it needs compute capability {least}, this GPU has {has}"
            )


def _of_checkpoint(launch: Launch, checkpoint: str) -> Iterator[str]:
    planned = launch.weights.checkpoint or ""
    if planned != checkpoint:
        yield _differs(
            "checkpoint",
            planned or "none",
            f"{checkpoint or 'none'}, the format of the checkpoint's matrices",
        )


def _differs(field: str, found: object, expected: str) -> str:
    return f"weights.{field} of the launch is {found}, expected {expected}"
