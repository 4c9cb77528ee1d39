"""The launch: what one worker has to run."""

from __future__ import annotations

import os
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from plimsoll_worker.launch.memory import PredictedMemory
from plimsoll_worker.launch.precision import Device, Precision, WeightsScheme
from plimsoll_worker.launch.wire import LAUNCH_VERSION, Bytes, Wire

LAUNCH_ENV = "PLIMSOLL_LAUNCH"
"""The environment variable that holds the `Launch` as JSON."""

SERVING_PORT = 8000
"""OpenAI API, /health, /metrics: the port the Service points at."""

ADMIN_PORT = 8001
"""/report: not in the Service, read by the operator alone."""

STAGE_PORT = 8002
"""Where the stages of a replica reach each other: not in any Service that clients use."""

RENDEZVOUS_SECONDS = 600
"""How long stages wait for each other: one may still pull an image of several GiB that another node had."""


def graph_sizes(max_sequences: int) -> tuple[int, ...]:
    """Batch sizes of decode steps that are captured as CUDA graphs: 1, 2, 4, 8, 16, … 64, 80, 96, …
    `max_sequences`. Each is a part of every start; from 64 on a matrix's tiles hold the padding anyway."""
    sizes = (1, 2, 4, *range(8, 64, 8), *range(64, max_sequences, 16))
    return (*(size for size in sizes if size < max_sequences), max_sequences)


def prompt_graph_sizes(max_batched_tokens: int) -> tuple[int, ...]:
    """Tokens of steps with prompts that are captured as CUDA graphs. On one H100 launching a step of
    Llama-3.1-8B kernel by kernel takes Python 15 ms, the device 6 ms for 128 tokens and 12 ms for 512; with
    more tokens the device is the slower one."""
    return tuple(size for size in (64, 128, 192, 256, 384, 512) if size <= max_batched_tokens)


class LaunchError(ValueError):
    """The launch is missing or malformed; the message says which field and what was expected."""


class LayerRange(Wire):
    """Layers `first` (inclusive) to `last` (exclusive) of the model."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=1)]


class StageAddress(Wire):
    """Where one stage listens for the others."""

    host: str
    """A name that holds before the pod has an address."""
    port: Annotated[int, Field(ge=1, le=65535)] = STAGE_PORT


class Rendezvous(Wire):
    """Where the stages of a replica meet, and how long they wait for each other."""

    stages: Annotated[tuple[StageAddress, ...], Field(min_length=2)]
    """In order. All others call the first one; each calls the one after it."""
    seconds: Annotated[int, Field(ge=1)] = RENDEZVOUS_SECONDS


class HubSource(Wire):
    """A repository of a Hugging Face compatible hub, at one commit."""

    repo: str
    commit: str


class Launch(Wire):
    """What one worker has to run: the plan as it applies to one pod. Nothing here is left to the worker's
    judgement except a KV pool smaller than `kv_cache_bytes`, never below what the workload needs."""

    version: Literal["v1"] = LAUNCH_VERSION
    plan_id: str
    revision: str
    replica: Annotated[int, Field(ge=0)] = 0
    attempt: Annotated[int, Field(ge=0)] = 0

    model_path: str
    """Folder or GGUF file inside the pod. With `hub` set: the folder the worker fetches into."""
    hub: HubSource | None = None
    served_name: str

    device: Device
    expected_product: str | None = None
    """GPU product the plan was made for; None on CPU."""
    weights: WeightsScheme
    kv_cache: Precision
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    stage: Annotated[int, Field(ge=0)] = 0
    layers: LayerRange
    rendezvous: Rendezvous | None = None
    """None where one stage is the whole replica."""

    max_context_tokens: Annotated[int, Field(ge=1)]
    """Longest sequence served, prompt and answer together."""
    max_concurrent_sequences: Annotated[int, Field(ge=1)]
    max_batched_tokens: Annotated[int, Field(ge=1)]
    """Most tokens of one forward pass: the prefill chunk."""
    kv_block_size: Annotated[int, Field(ge=1)] = 16
    """Tokens in a KV block."""
    kv_cache_bytes: Bytes
    """The KV pool, all layers of this stage, per rank."""

    line: Bytes
    """The most bytes of the device (GPU memory; the container's memory limit on CPU) that may be in use."""
    predicted: PredictedMemory

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        if self.stage >= self.pipeline_parallel:
            raise ValueError(
                f"stage is {self.stage}, expected less than pipelineParallel {self.pipeline_parallel}"
            )
        if self.rendezvous is None and self.pipeline_parallel > 1:
            raise ValueError(f"rendezvous is missing: pipelineParallel is {self.pipeline_parallel}")
        told = len(self.rendezvous.stages) if self.rendezvous else 1
        if told != self.pipeline_parallel:
            raise ValueError(
                f"rendezvous.stages has {told} addresses, expected one for each of pipelineParallel "
                f"{self.pipeline_parallel}"
            )
        return self

    @classmethod
    def from_env(cls, environ: dict[str, str] | None = None) -> Launch:
        """Parse `PLIMSOLL_LAUNCH`. Raises LaunchError that names the first wrong field."""
        raw = (os.environ if environ is None else environ).get(LAUNCH_ENV)
        if not raw:
            raise LaunchError(
                f"environment variable {LAUNCH_ENV} is not set: the operator writes it into worker pods"
            )
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "(root)"
            raise LaunchError(f"{LAUNCH_ENV}: {where}: {first['msg']}") from error
