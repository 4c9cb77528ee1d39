"""Everything that crosses the border between the operator and a worker, in one torch-free module.

The operator writes a `Launch` into the pod's environment; the worker answers with a `Report` over HTTP while
it lives and with an `ExitReason` as its termination message when it dies. Both sides import this module and
nothing else of each other, so a field can be added in one place and both test suites see it. The JSON Schemas
under `docs/schemas/` are generated from here and compared in the tests.

All byte counts are integers. Wire names are camelCase, as everywhere in Kubernetes.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

LAUNCH_VERSION: Final = "v1"
ENGINE_VERSION = "0.2.0"

LAUNCH_ENV = "PLIMSOLL_LAUNCH"
"""The environment variable that holds the `Launch` as JSON."""

SERVING_PORT = 8000
"""OpenAI API, /health, /metrics: the port the Service points at."""

ADMIN_PORT = 8001
"""/report: not in the Service, read by the operator alone."""

TERMINATION_MESSAGE_PATH = Path("/dev/termination-log")
TERMINATION_MESSAGE_BYTES = 4096
"""The kubelet keeps at most the last 4096 bytes of a termination message."""


def graph_sizes(max_sequences: int) -> tuple[int, ...]:
    """Batch sizes of decode steps that are captured as CUDA graphs: 1, 2, 4, 8, 16, 24, … `max_sequences`."""
    return (*(size for size in (1, 2, 4) if size < max_sequences), *range(8, max_sequences, 8), max_sequences)


class LaunchError(ValueError):
    """The launch is missing or malformed; the message says which field and what was expected."""


class Wire(BaseModel):
    """Base of everything on the wire: frozen, camelCase, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)


class Device(StrEnum):
    """The kind of device the weights live on."""

    GPU = "GPU"
    CPU = "CPU"


class Precision(StrEnum):
    """Element types. Engines compute in the first three; the others only hold: weights, and FP8 also keys
    and values."""

    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    FP8 = "FP8"
    """e4m3."""
    INT8 = "INT8"
    INT4 = "INT4"

    @property
    def bits(self) -> int:
        return _BITS[self]

    @property
    def bytes(self) -> int:
        """Of one element. Two INT4 numbers share a byte, so they have none of their own."""
        assert self is not Precision.INT4, "INT4 numbers are counted in bits"
        return self.bits // 8

    @property
    def computes(self) -> bool:
        """Whether an engine computes in it, and so can keep everything in it."""
        return self in (Precision.FP32, Precision.FP16, Precision.BF16)


_BITS = {
    Precision.FP32: 32,
    Precision.FP16: 16,
    Precision.BF16: 16,
    Precision.FP8: 8,
    Precision.INT8: 8,
    Precision.INT4: 4,
}


class MemoryCategory(StrEnum):
    """Where the bytes of a device go. Predictions use all but `unattributed`, which is what a ledger
    cannot explain."""

    WEIGHTS = "weights"
    KV_CACHE = "kvCache"
    ACTIVATIONS = "activations"
    CUDA_GRAPHS = "cudaGraphs"
    COMMUNICATION = "communication"
    RUNTIME = "runtime"
    FRAGMENTATION = "fragmentation"
    UNATTRIBUTED = "unattributed"


Bytes = Annotated[int, Field(ge=0)]


class PredictedMemory(Wire):
    """Bytes per category on the worst rank of one stage."""

    weights: Bytes
    """Weights as the engine keeps them."""
    kv_cache: Bytes
    """The KV pool."""
    activations: Bytes
    """Peak of what one forward pass holds besides weights and KV cache."""
    cuda_graphs: Bytes
    """Captured CUDA graphs; 0 on CPU."""
    communication: Bytes
    """Buffers between the GPUs of a replica; 0 for a single device."""
    runtime: Bytes
    """Context, libraries and workspaces of the device, or the interpreter and its libraries on CPU."""
    fragmentation: Bytes
    """What the allocator holds without using it."""

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in type(self).model_fields)


class MeasuredMemory(PredictedMemory):
    """Bytes per category as the worker's ledger found them; `unattributed` may be negative when the device
    reports less."""

    unattributed: int = 0
    """Used on the device and in no category; negative when the device reports less than the ledger."""


class WeightsScheme(Wire):
    """How weights are kept on the device."""

    name: Precision
    """Element type of the matrices. Of a quantized checkpoint: of what it leaves unquantized."""
    bits: int
    group_size: int | None = None
    """Numbers along a row that share a scale; None: the whole row, or there are no scales."""
    scale_type: str | None = None
    """Element type of the scales; None: there are none."""
    compute: Precision | None = None
    """What embedding, head, norms and biases are kept in, and all is computed in; None: `name`."""
    checkpoint: str | None = None
    """Format of a quantized checkpoint whose matrices stay as they are stored, for example gptq."""

    @classmethod
    def plain(cls, precision: Precision) -> WeightsScheme:
        """Unquantized weights of one element type."""
        return cls(name=precision, bits=precision.bits)

    @classmethod
    def quantized(cls, precision: Precision, compute: Precision) -> WeightsScheme:
        """Matrices quantized while they are loaded. INT8: one scale per row, in the precision of the
        computation. INT4: a scale and a minimum per group. FP8: one scale per row, in FP32 as
        `torch._scaled_mm` takes it."""
        return cls(
            name=precision,
            bits=precision.bits,
            group_size=INT4_GROUP if precision is Precision.INT4 else None,
            scale_type=Precision.FP32 if precision is Precision.FP8 else compute,
            compute=compute,
        )

    @classmethod
    def stored(cls, checkpoint: str, compute: Precision) -> WeightsScheme:
        """A quantized checkpoint as its files hold it."""
        return cls(name=compute, bits=compute.bits, checkpoint=checkpoint)


INT4_GROUP: Final = 128
"""Numbers along a row of an INT4 matrix that share a scale and a minimum."""


class LayerRange(Wire):
    """Layers `first` (inclusive) to `last` (exclusive) of the model."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=1)]


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
    engine_version: str = ENGINE_VERSION
    torch_version: str


class ExitCode(StrEnum):
    """Why a worker ended."""

    COMPLETED = "Completed"
    LAUNCH_INVALID = "LaunchInvalid"
    EFFECTIVE_CONFIG_MISMATCH = "EffectiveConfigMismatch"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNREADABLE = "ModelUnreadable"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    FETCH_FAILED = "FetchFailed"
    CUDA_OUT_OF_MEMORY = "CUDAOutOfMemory"
    MEMORY_ESTIMATE_EXCEEDED = "MemoryEstimateExceeded"
    ENGINE_FAILED = "EngineFailed"


class ExitReason(Wire):
    """The termination message of a worker that did not end well."""

    version: Literal["v1"] = LAUNCH_VERSION
    reason: ExitCode
    message: str
    plan_id: str | None = None

    def write(self, path: Path = TERMINATION_MESSAGE_PATH) -> None:
        """Write the message, shortened so that the kubelet keeps it whole; a missing path (no kubelet) is
        no error."""
        text = self.to_json()
        if len(text.encode()) > TERMINATION_MESSAGE_BYTES:
            text = self.model_copy(update={"message": self.message[:800] + " …"}).to_json()
        if path.exists():
            path.write_text(text, encoding="utf-8")

    @classmethod
    def parse(cls, message: str | None) -> ExitReason | None:
        """The reason in a termination message, or None when the text is not one (the container was killed,
        say)."""
        if not message:
            return None
        try:
            return cls.model_validate_json(message)
        except ValidationError:
            return None


class Capabilities(Wire):
    """What an engine version can run. Planning offers nothing else, and says EngineUnsupported otherwise."""

    engine_version: str
    architectures: tuple[str, ...]
    weights: dict[Device, tuple[Precision, ...]]
    """What weights can be kept in. A precision that only holds is made while loading."""
    kv_cache: dict[Device, tuple[Precision, ...]] = Field(default_factory=dict)
    """What keys and values can be kept in besides the precision of the computation."""
    checkpoints: dict[Device, tuple[str, ...]] = Field(default_factory=dict)
    """Formats of quantized checkpoints that are loaded as they are stored, as `quant_method` of a config.json
    names them."""
    max_tensor_parallel: Annotated[int, Field(ge=1)]
    max_pipeline_parallel: Annotated[int, Field(ge=1)]
    multi_node: bool = True
    """Whether the stages of a replica may run on different nodes."""


CAPABILITIES = Capabilities(
    engine_version=ENGINE_VERSION,
    architectures=(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "granite",
        "mixtral",
        "qwen3_moe",
    ),
    weights={
        Device.GPU: (Precision.BF16, Precision.FP16, Precision.FP32),
        Device.CPU: (Precision.FP32,),
    },
    max_tensor_parallel=1,
    max_pipeline_parallel=1,
)
