"""What a worker says of itself while it lives."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from plimsoll_worker.launch.memory import MeasuredMemory
from plimsoll_worker.launch.precision import Device, Precision, WeightsScheme
from plimsoll_worker.launch.wire import ENGINE_VERSION, LAUNCH_VERSION, Bytes, Wire


class StartupStage(StrEnum):
    """Steps of a worker's start that are timed."""

    FETCHED = "Fetched"
    WEIGHTS_LOADED = "WeightsLoaded"
    WARMED_UP = "WarmedUp"
    READY = "Ready"


class StartupTime(Wire):
    """Time from process start to the end of `stage`."""

    stage: StartupStage
    milliseconds: Annotated[int, Field(ge=0)]
    bytes: Bytes | None = None
    """Weights brought to the device; with WeightsLoaded alone."""


class DeviceReport(Wire):
    """One device of a worker: what it is and where its bytes went."""

    rank: int
    product: str
    total_bytes: Bytes
    used_bytes: Bytes
    bytes: MeasuredMemory


class LinkReport(Wire):
    """The way to the next stage, measured over TCP before weights were loaded."""

    stage: int
    """The one it leads to."""
    bytes_per_second: Annotated[int, Field(ge=0)]
    round_trip_microseconds: Annotated[int, Field(ge=0)]


class Report(Wire):
    """What a worker really runs. Served as JSON at /report on the admin port."""

    version: Literal["v1"] = LAUNCH_VERSION
    plan_id: str
    revision: str
    device: Device
    architecture: str
    weights: WeightsScheme
    kv_cache: Precision
    tensor_parallel: int
    pipeline_parallel: int
    stage: int
    max_context_tokens: int
    max_batched_tokens: int
    kv_cache_tokens: int
    """Tokens that the KV pool holds."""
    devices: tuple[DeviceReport, ...]
    startup: tuple[StartupTime, ...]
    link: LinkReport | None = None
    """None on the last stage."""
    engine_version: str = ENGINE_VERSION
    torch_version: str
