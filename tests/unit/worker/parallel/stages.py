"""Launches of the stages of one replica, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.unit.worker.processes import free_port, smollm2_launch

from plimsoll_worker.launch import Launch, LayerRange, Rendezvous, StageAddress

LAYERS = 30


def stage_launches(
    path: Path, layers: Sequence[int] = (16, 14), *, seconds: int = 60, **changes: object
) -> list[Launch]:
    """Of SmolLM2-135M, a stage for each number of layers; `changes` are fields of Launch."""
    meeting = Rendezvous(
        stages=tuple(StageAddress(host="127.0.0.1", port=free_port()) for _ in layers), seconds=seconds
    )
    return [
        smollm2_launch(
            path,
            pipeline_parallel=len(layers),
            stage=stage,
            layers=held,
            rendezvous=meeting,
            **changes,
        )
        for stage, held in enumerate(ranges(layers))
    ]


def ranges(layers: Sequence[int]) -> Iterator[LayerRange]:
    """`layers` of each stage, one stage after the other."""
    first = 0
    for count in layers:
        yield LayerRange(first=first, last=first + count)
        first += count
