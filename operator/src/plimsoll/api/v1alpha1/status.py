"""What the operator found, decided and measured: `status` of an LLMDeployment, written by it alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plimsoll.api.v1alpha1.fields import Model, ShortText, list_map
from plimsoll_worker.launch import Device, MeasuredMemory, Precision, PredictedMemory

Timestamp = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
"""RFC 3339."""
Line = Annotated[str, Field(max_length=1024)]
Message = Annotated[str, Field(max_length=32768)]


class Condition(Model):
    """A condition as in metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """What is told."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation that was looked at."""
    last_transition_time: Timestamp
    """When `status` last changed."""
    reason: Annotated[str, Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One word, for programs."""
    message: Message = ""
    """For people."""


class ModelStatus(Model):
    """What the model is, read from its own headers."""

    architecture: ShortText
    """Model family."""
    revision: ShortText
    """Commit of the repository, or a hash over headers and sizes."""
    parameters: int
    """Distinct parameters."""
    checkpoint_bytes: int
    """Tensor data in the files, bytes."""
    kv_bytes_per_token: int
    """KV cache of one token over all layers, bytes, in the planned precision (before a plan: 16 bit)."""
    max_position: int
    """Longest sequence the model was made for, tokens."""


class StageMemory(Model):
    """Memory of one stage on its worst rank, bytes."""

    stage: int
    """Pipeline stage."""
    predicted: PredictedMemory
    """Bytes per category."""
    line: int
    """The most bytes of the device that may be in use."""
    total: int
    """Sum of the prediction."""


class PlanPlacement(Model):
    """Where one stage of one replica runs."""

    replica: int
    """Replica, from 0."""
    stage: int
    """Pipeline stage, from 0."""
    node: ShortText
    """Node name."""
    gpus: int
    """GPUs taken on the node; 0 on CPU."""


class RejectedOption(Model):
    """An option that was looked at and not taken."""

    option: ShortText
    """What it was, for example BF16 TP1."""
    reason: ShortText
    """One word."""
    message: Message
    """Bytes needed and bytes there, and what would change it."""


class Predicted(Model):
    """How fast a replica will be while all its sequences are served."""

    time_per_output_token_microseconds: int
    """Between two tokens of a sequence."""
    time_to_first_token_microseconds: int
    """Of a prompt of the longest context, or of the mean where it is given."""
    tokens_per_second: int
    """Of all sequences together."""
    basis: Literal["Roofline", "Calibrated"]
    """Roofline: from the GPU's datasheet. Calibrated: corrected by what was measured."""


class PlanStatus(Model):
    """A plan: the decision for one revision."""

    revision: ShortText
    """Revision that the plan belongs to; the name of its ControllerRevision and a label of its pods."""
    id: ShortText
    """Hash over everything the plan was made from."""
    summary: Line
    """The plan in one line, for example FP32 TP1xPP1 on CPU of node-a."""
    device: Device
    """Kind of device."""
    product: ShortText = ""
    """GPU product; empty on CPU."""
    resource_name: ShortText = ""
    """Extended resource of the GPUs, for example nvidia.com/gpu; with DRA the DeviceClass and the product
    that worker pods claim. Empty on CPU."""
    allocation: Literal["", "DevicePlugin", "DRA"] = ""
    """Who hands the GPUs to worker pods; empty on CPU."""
    weights: Precision
    """Element type of the weights in device memory; of a quantized checkpoint, of what it leaves
    unquantized."""
    compute: Precision | None = None
    """What the engine computes in and keeps embedding, head and norms in. Default: as weights."""
    checkpoint_format: ShortText = ""
    """Format of a quantized checkpoint whose matrices stay as they are stored, for example gptq."""
    kv_cache: Precision
    """Element type of the KV cache."""
    tensor_parallel: int
    """GPUs a stage is divided over."""
    pipeline_parallel: int
    """Stages."""
    stage_layers: Annotated[list[int], Field(max_length=64)]
    """Layers of each stage."""
    max_batched_tokens: int
    """Most tokens of one forward pass."""
    max_context_tokens: int
    """Longest sequence served."""
    kv_cache_tokens: int
    """Tokens that the KV pool holds."""
    kv_cache_bytes: int
    """Size of the KV pool of the largest stage on one rank, bytes."""
    memory: Annotated[list[StageMemory], Field(max_length=64, json_schema_extra=list_map("stage"))]
    """Memory by stage."""
    host_memory_bytes: int
    """Memory request and limit of the worker container, bytes."""
    predicted: Predicted | None = None
    """How fast a replica will be; nothing where the GPU's speed is not known."""
    placements: Annotated[
        list[PlanPlacement], Field(max_length=1024, json_schema_extra=list_map("replica", "stage"))
    ]
    """Where replicas run."""
    rejected: Annotated[list[RejectedOption], Field(max_length=8)] = Field(default_factory=list)
    """The nearest options not taken."""


class MeasuredStage(Model):
    """What the worst rank of a stage measured."""

    stage: int
    """Pipeline stage."""
    bytes: MeasuredMemory
    """Bytes per category."""
    kv_cache_tokens: int
    """Tokens that the KV pool really holds."""
    device: Device
    """Kind of device the worker runs on."""
    weights: Precision
    """Element type of the weights."""
    tensor_parallel: int
    """GPUs a stage is divided over."""
    pipeline_parallel: int
    """Stages."""
    error_permille: int
    """Predicted total less measured total, in thousandths of the measured total."""


class StartupTime(Model):
    """How long one stage of a start took."""

    stage: ShortText
    """Scheduled, ImagePulled, Fetched, WeightsLoaded, WarmedUp, Ready; each begins where the one before it
    ended."""
    milliseconds: int
    """Duration. Kubernetes tells whole seconds, the worker milliseconds."""


class LastFailure(Model):
    """The last failure of a replica."""

    reason: ShortText
    """One word: of the worker's own exit reason, else of the container's state."""
    pod: ShortText
    """Pod that failed."""
    message: Message
    """The worker's own words."""
    time: Timestamp
    """When."""


class ReplicaStatus(Model):
    """One replica of one revision."""

    revision: ShortText
    """Revision it belongs to."""
    replica: int
    """Replica, from 0."""
    attempt: int
    """Times its pods were created anew."""
    ready: bool
    """Whether it answers."""
    restarts: int = 0
    """Restarts after failures, in place and anew, since it last ran well; counted against
    rollout.maxRestarts."""
    container_restarts: int = 0
    """Restarts that the kubelet told of the pods of this attempt; what is beyond is counted next."""
    given_up: bool = False
    """The restarts are used up: its pods are gone until the spec or the annotation plimsoll.dev/retry
    changes."""
    next_retry_time: Timestamp | None = None
    """When its pods are created anew; absent while none are waited for."""
    last_failure: LastFailure | None = None
    """The last failure, while it matters."""


class Exclusion(Model):
    """What planning must not try again: a node, or a configuration."""

    node: ShortText = ""
    """Node that did not take a pod; empty for a configuration."""
    configuration: Line = ""
    """Configuration that ran out of memory; empty for a node."""
    reason: ShortText
    """One word."""
    message: Message = ""
    """What happened, in the words of who told it."""
    until: Timestamp | None = None
    """When a node is tried again."""
    basis: ShortText = ""
    """What a configuration ran out of memory with: a hash over the model's revision, the worker image,
    podTemplate.env and placement.memoryHeadroomPercent. Another one of these, and it may be tried again; a
    new value of the annotation plimsoll.dev/retry forgets it."""


class LLMDeploymentStatus(Model):
    """What is."""

    observed_generation: int = 0
    """Generation that the conditions speak of."""
    replicas: int = 0
    """Replicas that have pods."""
    ready_replicas: int = 0
    """Replicas that answer."""
    updated_replicas: int = 0
    """Replicas of the newest revision."""
    updated_ready_replicas: int = 0
    """Replicas of the newest revision that answer."""
    selector: Line = ""
    """Label selector of the pods that count as replicas, for the scale subresource."""
    url: Line = ""
    """Address of the OpenAI API inside the cluster."""
    current_revision: ShortText = ""
    """Revision that serves."""
    update_revision: ShortText = ""
    """Revision that is wanted."""
    model: ModelStatus | None = None
    """What the model is."""
    plans: Annotated[list[PlanStatus], Field(max_length=2, json_schema_extra=list_map("revision"))] = Field(
        default_factory=list
    )
    """The plan that serves and the one that is being rolled out."""
    rejected: Annotated[list[RejectedOption], Field(max_length=8)] = Field(default_factory=list)
    """The nearest options of what has no place. Of what has a place its plan tells them."""
    measured: Annotated[list[MeasuredStage], Field(max_length=64, json_schema_extra=list_map("stage"))] = (
        Field(default_factory=list)
    )
    """What the workers measured."""
    startup: Annotated[list[StartupTime], Field(max_length=8, json_schema_extra=list_map("stage"))] = Field(
        default_factory=list
    )
    """How long the stages of the last start took."""
    replica_statuses: Annotated[
        list[ReplicaStatus], Field(max_length=192, json_schema_extra=list_map("revision", "replica"))
    ] = Field(default_factory=list)
    """State of each replica."""
    exclusions: Annotated[list[Exclusion], Field(max_length=16)] = Field(default_factory=list)
    """What planning must not try again."""
    retried: ShortText = ""
    """Value of the annotation plimsoll.dev/retry that was acted on."""
    last_progress_time: Timestamp | None = None
    """When the number of answering replicas of the wanted revision last changed, or the spec did."""
    conditions: Annotated[list[Condition], Field(max_length=16, json_schema_extra=list_map("type"))] = Field(
        default_factory=list
    )
    """Ready, Available, ModelResolved, Planned, Scheduled, Verified, Progressing, Degraded."""
