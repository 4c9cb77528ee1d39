"""LLMDeployment `plimsoll.dev/v1alpha1`: the resource as typed, frozen models.

These models are the source of the CustomResourceDefinition (`python -m plimsoll.api.crd` writes `crds/`): docstrings
become the descriptions that `kubectl explain` prints, constraints become the schema that the API server enforces, CEL
rules stand beside the model they guard. The schema holds only fields that work today; it grows with the program.
Parsing ignores unknown fields, because a newer CRD may meet an older operator; the API server refuses them at admission.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from plimsoll_worker.launch import Device, MeasuredMemory, Precision, PredictedMemory

GROUP = "plimsoll.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
MAX_NAME_LENGTH = 40


class Model(BaseModel):
    """Base of the resource's parts. `CEL` holds (rule, message) pairs that the CRD generator attaches."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )
    CEL: ClassVar[tuple[tuple[str, str], ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


def _quantity_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]{1,9})?)(m|[kMGTPE]|[KMGTPE]i)?$"
Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    Field(pattern=QUANTITY_PATTERN, max_length=32, json_schema_extra={"x-kubernetes-int-or-string": True}),
]
DNSLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
ObjectName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", min_length=1, max_length=253)
]
ShortText = Annotated[str, Field(max_length=253)]
LabelKey = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]


# --- spec ---------------------------------------------------------------------------------------------------------


class HuggingFaceSource(Model):
    """A repository of a Hugging Face compatible hub."""

    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)]
    """Owner and name, for example Qwen/Qwen3-32B."""
    revision: Annotated[str, Field(max_length=200, pattern=r"^[\w./-]*$")] = ""
    """Branch, tag or commit. Default: the repository's default branch. It is resolved to a commit, recorded in status."""


class PersistentVolumeClaimSource(Model):
    """A folder or a GGUF file on a volume of the resource's namespace. It is mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: Annotated[str, Field(max_length=1024, pattern=r"^([^/].*)?$")] = ""
    """Folder or file inside the volume, relative, without `..`. Default: the volume's root."""

    CEL = (("!self.path.split('/').exists(part, part == '..')", "path must stay inside the volume: remove '..'"),)


class SecretKeyRef(Model):
    """A key of a Secret in the resource's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)] = "token"
    """Key inside the Secret. Default: token."""


class ModelSource(Model):
    """Where the model comes from: exactly one source."""

    hugging_face: HuggingFaceSource | None = None
    """A repository of a Hugging Face compatible hub."""
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """A folder or a GGUF file on a volume."""
    credentials_secret_ref: SecretKeyRef | None = None
    """Token for gated or private repositories. Only inspect and worker pods read it, never the operator."""
    served_name: Annotated[str, Field(max_length=200)] = ""
    """Model name that clients use. Default: metadata.name."""

    CEL = (
        (
            "[has(self.huggingFace), has(self.persistentVolumeClaim)].filter(given, given).size() == 1",
            "set exactly one source: huggingFace or persistentVolumeClaim",
        ),
        (
            "!has(self.credentialsSecretRef) || has(self.huggingFace)",
            "credentialsSecretRef is for huggingFace: remove it, a persistentVolumeClaim needs no token",
        ),
    )


class Workload(Model):
    """What must fit into memory at the same time."""

    max_context_tokens: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Longest sequence served, prompt and answer together, in tokens. Default: the model's limit, at most 8192."""
    max_concurrent_sequences: Annotated[int, Field(ge=1, le=1024)] = 8
    """Sequences served at the same time; the KV cache is sized for all of them at full length. Default: 8."""
    max_batched_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Most tokens of one forward pass (the prefill chunk). Default: planned."""


class WeightsPrecision(StrEnum):
    """Precision of the weights in device memory."""

    NATIVE = "Native"
    FP32 = "FP32"
    BF16 = "BF16"


class Quantization(Model):
    """Precision of what is kept in device memory."""

    weights: WeightsPrecision = WeightsPrecision.NATIVE
    """Native keeps every weight exactly: 16-bit checkpoints in 16 bit, quantized GGUF files and everything on CPU in
    FP32. FP32 and BF16 convert. Default: Native."""


class Accelerators(Model):
    """Which GPUs may be used."""

    products: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=16)] = Field(
        default_factory=list
    )
    """GPU products by name, for example H100 or NVIDIA-L4: a part of the node's product label, upper or lower case.
    Default: any."""
    min_memory: Quantity | None = None
    """Least memory of one GPU, for example 40Gi. Default: what the model needs."""
    min_compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    """Least CUDA compute capability, for example 8.9; compared as numbers. Default: any."""


class Toleration(Model):
    """A toleration as in a pod."""

    key: ShortText = ""
    """Taint key; empty with operator Exists matches every key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared. Default: Equal."""
    value: Annotated[str, Field(max_length=63)] = ""
    """Taint value for operator Equal."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Taint effect; empty matches every effect."""

    CEL = (
        ("self.operator != 'Exists' || self.value == ''", "operator Exists takes no value: remove it or use Equal"),
        ("self.operator == 'Exists' || self.key != ''", "an empty key needs operator Exists"),
    )


class Placement(Model):
    """Where replicas may run."""

    device: Device = Device.GPU
    """GPU or CPU. CPU is used only when it is asked for here. Default: GPU."""
    accelerators: Accelerators = Field(default_factory=Accelerators)
    """Which GPUs may be used."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Taints that replicas tolerate. GPU workers tolerate nvidia.com/gpu:NoSchedule by themselves."""
    priority_class_name: Annotated[str, Field(max_length=253)] = ""
    """PriorityClass of the worker pods; deployments of higher priority are planned first."""
    memory_headroom_percent: Annotated[int, Field(ge=0, le=50)] = 3
    """Share of each device that stays free. The line is the device's memory less this share. Default: 3."""

    CEL = (
        (
            "self.device == 'GPU' || (self.accelerators.products.size() == 0 && !has(self.accelerators.minMemory) && "
            "!has(self.accelerators.minComputeCapability))",
            "accelerators are for device GPU: remove them or set device: GPU",
        ),
    )


class PlanMode(StrEnum):
    """What happens with a plan."""

    APPLY = "Apply"
    PLAN_ONLY = "PlanOnly"


class PlanPolicy(Model):
    """How plans are used."""

    mode: PlanMode = PlanMode.APPLY
    """Apply starts worker pods. PlanOnly writes the plan to status and starts none. Default: Apply."""


class Rollout(Model):
    """How replicas are replaced."""

    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    """Time that a stopping worker has to finish running requests, in seconds. Default: 120."""


class ServiceSpec(Model):
    """How clients reach the deployment."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the Service. Default: 8000."""
    api_key_secret_ref: SecretKeyRef | None = None
    """When set, clients must send this key as bearer token."""


class Engine(Model):
    """What runs in the worker pods."""

    image: Annotated[str, Field(max_length=512)] = ""
    """Worker image. Default: the operator's own."""


class EnvVar(Model):
    """An environment variable of the worker container."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Variable name. Names that start with PLIMSOLL_ belong to the plan."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Value."""

    CEL = (("!self.name.startsWith('PLIMSOLL_')", "variables named PLIMSOLL_* belong to the plan: rename it"),)


class ContainerResources(Model):
    """CPU of the worker container; memory is the plan's."""

    cpu: Quantity | None = None
    """CPU request, for example 4. Default: by the device and the model."""


class LocalObjectReference(Model):
    """A Secret of the same namespace, by name."""

    name: ObjectName
    """Name of the Secret."""


class PodTemplate(Model):
    """A small closed overlay on the worker pods."""

    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = Field(default_factory=dict)
    """Labels added to worker pods."""
    annotations: Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Annotations added to worker pods."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Environment of the worker container."""
    resources: ContainerResources = Field(default_factory=ContainerResources)
    """CPU of the worker container."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=8)] = Field(default_factory=list)
    """Secrets to pull images with, also for the inspect pod."""
    runtime_class_name: Annotated[str, Field(max_length=253)] = ""
    """RuntimeClass of worker pods, for example nvidia."""

    CEL = (
        (
            "!self.labels.exists(key, key.startsWith('plimsoll.dev/') || key.startsWith('app.kubernetes.io/'))",
            "labels plimsoll.dev/* and app.kubernetes.io/* belong to the operator: rename them",
        ),
    )


class LLMDeploymentSpec(Model):
    """What to serve. Six lines are enough: everything but `model` has a default."""

    model: ModelSource
    """Where the model comes from."""
    workload: Workload = Field(default_factory=Workload)
    """What must fit into memory at the same time."""
    quantization: Quantization = Field(default_factory=Quantization)
    """Precision of what is kept in device memory."""
    placement: Placement = Field(default_factory=Placement)
    """Where replicas may run."""
    plan: PlanPolicy = Field(default_factory=PlanPolicy)
    """How plans are used."""
    replicas: Annotated[int, Field(ge=0, le=64)] = 1
    """Copies of the model. Default: 1."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How replicas are replaced."""
    service: ServiceSpec = Field(default_factory=ServiceSpec)
    """How clients reach the deployment."""
    engine: Engine = Field(default_factory=Engine)
    """What runs in the worker pods."""
    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """A small closed overlay on the worker pods."""
    suspend: bool = False
    """True: keep plan and Service, run no pod. Default: false."""


# --- status -------------------------------------------------------------------------------------------------------


class Condition(Model):
    """A condition as in metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """What is told."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation that was looked at."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    reason: Annotated[str, Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One word, for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """For people."""


class ModelStatus(Model):
    """What the model is, read from its own headers."""

    architecture: str
    """Model family."""
    revision: str
    """Commit of the repository, or a hash over headers and sizes."""
    parameters: int
    """Distinct parameters."""
    checkpoint_bytes: int
    """Tensor data in the files, bytes."""
    kv_bytes_per_token: int
    """KV cache of one token over all layers, bytes, in the planned precision (16 bit before there is a plan)."""
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
    node: str
    """Node name."""
    gpus: int
    """GPUs taken on the node; 0 on CPU."""


class RejectedOption(Model):
    """An option that was looked at and not taken."""

    option: str
    """What it was, for example BF16 TP1."""
    reason: str
    """One word."""
    message: str
    """Bytes needed and bytes there, and what would change it."""


class PlanStatus(Model):
    """A plan: the decision for one revision."""

    revision: str
    """Revision that the plan belongs to; also the name of its ControllerRevision and the key of worker pods."""
    id: str
    """Hash over everything the plan was made from."""
    summary: str
    """The plan in one line, for example FP32 TP1xPP1 on CPU of node-a."""
    device: Device
    """Kind of device."""
    product: str = ""
    """GPU product; empty on CPU."""
    resource_name: str = ""
    """Extended resource of the GPUs, for example nvidia.com/gpu; empty on CPU."""
    weights: Precision
    """Element type of the weights in device memory."""
    kv_cache: Precision
    """Element type of the KV cache."""
    tensor_parallel: int
    """GPUs a stage is divided over."""
    pipeline_parallel: int
    """Stages."""
    stage_layers: list[int]
    """Layers of each stage."""
    max_batched_tokens: int
    """Most tokens of one forward pass."""
    max_context_tokens: int
    """Longest sequence served."""
    kv_cache_tokens: int
    """Tokens that the KV pool holds."""
    kv_cache_bytes: int
    """Size of the KV pool of the largest stage on one rank, bytes."""
    memory: list[StageMemory]
    """Memory by stage."""
    host_memory_bytes: int
    """Memory request and limit of the worker container, bytes."""
    placements: list[PlanPlacement]
    """Where replicas run."""
    rejected: list[RejectedOption] = Field(default_factory=list, max_length=8)
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


class LastFailure(Model):
    """The last failure of a replica."""

    reason: str
    """One word: of the worker's own exit reason, else of the container's state."""
    pod: str
    """Pod that failed."""
    message: str
    """The worker's own words."""
    time: str
    """When."""


class ReplicaStatus(Model):
    """One replica."""

    replica: int
    """Replica, from 0."""
    attempt: int
    """Times its pods were created anew."""
    ready: bool
    """Whether it answers."""
    restarts: int = 0
    """Restarts of its containers in place."""
    last_failure: LastFailure | None = None
    """The last failure, while it matters."""


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
    selector: str = ""
    """Label selector of the pods that count as replicas, for the scale subresource."""
    url: str = ""
    """Address of the OpenAI API inside the cluster."""
    current_revision: str = ""
    """Revision that serves."""
    update_revision: str = ""
    """Revision that is wanted."""
    model: ModelStatus | None = None
    """What the model is."""
    plans: list[PlanStatus] = Field(default_factory=list, max_length=2)
    """The plan that serves and the one that is being rolled out."""
    measured: list[MeasuredStage] = Field(default_factory=list, max_length=64)
    """What the workers measured."""
    replica_statuses: list[ReplicaStatus] = Field(default_factory=list, max_length=64)
    """State of each replica."""
    conditions: list[Condition] = Field(default_factory=list, max_length=16)
    """Ready, Available, ModelResolved, Planned, Scheduled, Verified, Progressing, Degraded."""


class LLMDeployment(Model):
    """A large language model, served: its memory footprint computed, precision, GPUs and nodes chosen by the operator."""

    spec: LLMDeploymentSpec
    """What to serve."""
    status: LLMDeploymentStatus = Field(default_factory=LLMDeploymentStatus)
    """What is."""
