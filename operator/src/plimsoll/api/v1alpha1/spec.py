"""What a user asks for: `spec` of an LLMDeployment. Everything but the model's source has a default."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from plimsoll.api.v1alpha1.fields import (
    LIST_SET,
    LabelKey,
    LabelValue,
    Matches,
    Model,
    ObjectName,
    Quantity,
    Rule,
    ShortText,
    is_label_key,
    label_keys,
    list_map,
)
from plimsoll.api.v1alpha1.rollout import PlanPolicy, Rollout
from plimsoll.api.v1alpha1.workload import Parallelism, Quantization, Targets, Workload
from plimsoll_worker.launch import Device


class HuggingFaceSource(Model):
    """A repository of a Hugging Face compatible hub."""

    repo: Annotated[
        str,
        Field(max_length=200),
        Matches(
            r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$",
            "not a repository: write owner/name without a host, for example Qwen/Qwen3-32B",
        ),
    ]
    """Owner and name, for example Qwen/Qwen3-32B."""
    revision: Annotated[
        str,
        Field(max_length=200),
        Matches(r"^[\w./-]*$", "not a revision: write a branch, a tag or a commit"),
    ] = ""
    """Branch, tag or commit. Default: the default branch. Status records the commit that it stood for."""


class PersistentVolumeClaimSource(Model):
    """A folder or a GGUF file on a volume of the resource's namespace. It is mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: Annotated[
        str,
        Field(max_length=1024),
        Matches(r"^([^/].*)?$", "path is relative to the volume's root: remove the first '/'"),
    ] = ""
    """Folder or file inside the volume, relative, without `..`. Default: the volume's root."""

    RULES = (
        Rule(
            "!has(self.path) || !self.path.split('/').exists(part, part == '..')",
            lambda source: ".." not in source.path.split("/"),
            "path must stay inside the volume: remove '..'",
        ),
    )


class SecretKeyRef(Model):
    """A key of a Secret in the resource's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[
        str,
        Field(min_length=1, max_length=253),
        Matches(r"^[-._a-zA-Z0-9]+$", "not a key of a Secret: write letters, digits, '-', '_' and '.'"),
    ] = "token"
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

    RULES = (
        Rule(
            "[has(self.huggingFace), has(self.persistentVolumeClaim)].filter(given, given).size() == 1",
            lambda source: (source.hugging_face is None) != (source.persistent_volume_claim is None),
            "set exactly one source: huggingFace or persistentVolumeClaim",
        ),
        Rule(
            "!has(self.credentialsSecretRef) || has(self.huggingFace)",
            lambda source: source.credentials_secret_ref is None or source.hugging_face is not None,
            "credentialsSecretRef is for huggingFace: remove it, a persistentVolumeClaim needs no token",
        ),
    )


class Accelerators(Model):
    """Which GPUs may be used."""

    products: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=100)]],
        Field(max_length=16, json_schema_extra=LIST_SET),
    ] = Field(default_factory=list)
    """GPU products by name, for example H100 or NVIDIA-L4: a part of the node's product label, upper or lower
    case. Default: any."""
    min_memory: Quantity | None = None
    """Least memory of one GPU, for example 40Gi. Default: what the model needs."""
    min_compute_capability: (
        Annotated[
            str,
            Field(max_length=32),
            Matches(
                r"^[0-9]{1,2}\.[0-9]$",
                "not a compute capability: write major.minor in quotes, for example '8.9'",
            ),
        ]
        | None
    ) = None
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

    RULES = (
        Rule(
            "self.operator != 'Exists' || !has(self.value) || self.value == ''",
            lambda toleration: toleration.operator != "Exists" or not toleration.value,
            "operator Exists takes no value: remove value, or write operator: Equal",
        ),
        Rule(
            "self.operator == 'Exists' || (has(self.key) && self.key != '')",
            lambda toleration: toleration.operator == "Exists" or bool(toleration.key),
            "a toleration without key is for every taint: write a key, or operator: Exists if you mean that",
        ),
    )


class GPUSharing(StrEnum):
    """What a worker gets of a GPU."""

    EXCLUSIVE = "Exclusive"
    MIG = "MIG"


class GPUAllocation(StrEnum):
    """Who hands GPUs to worker pods."""

    AUTO = "Auto"
    DEVICE_PLUGIN = "DevicePlugin"
    DRA = "DRA"


class Placement(Model):
    """Where replicas may run."""

    device: Device = Device.GPU
    """GPU or CPU. CPU is used only when it is asked for here. Default: GPU."""
    accelerators: Accelerators = Field(default_factory=Accelerators)
    """Which GPUs may be used."""
    sharing: GPUSharing = GPUSharing.EXCLUSIVE
    """Exclusive: whole GPUs. MIG: one MIG slice a replica, a part of a GPU with memory of its own. Default:
    Exclusive."""
    allocation: GPUAllocation = GPUAllocation.AUTO
    """DevicePlugin: worker pods ask for nvidia.com/gpu. DRA: they claim devices that a driver published in
    ResourceSlices. Auto: as each node offers its GPUs; the plan tells which. Default: Auto."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Taints that replicas tolerate. GPU workers tolerate nvidia.com/gpu:NoSchedule by themselves."""
    priority_class_name: ShortText = ""
    """PriorityClass of the worker pods; deployments of higher priority are planned first."""
    topology_key: LabelKey = ""
    """Label of nodes, for example topology.kubernetes.io/zone: all stages of a replica run on nodes that
    share its value, and on no node without it. A replica on one node needs no label. Default: anywhere."""
    memory_headroom_percent: Annotated[int, Field(ge=0, le=50)] = 3
    """Share of each device that stays free. The line is the device's memory less this share. Default: 3."""

    RULES = (
        Rule(
            "self.device == 'GPU' || !has(self.accelerators) || ((!has(self.accelerators.products) || "
            "self.accelerators.products.size() == 0) && !has(self.accelerators.minMemory) && "
            "!has(self.accelerators.minComputeCapability))",
            lambda placement: placement.device is Device.GPU or placement.accelerators == Accelerators(),
            "accelerators are for device GPU: remove them or write device: GPU",
        ),
        Rule(
            "self.device == 'GPU' || !has(self.sharing) || self.sharing == 'Exclusive'",
            lambda placement: placement.device is Device.GPU or placement.sharing is GPUSharing.EXCLUSIVE,
            "sharing: MIG is for device GPU: remove it or write device: GPU",
        ),
        Rule(
            "self.device == 'GPU' || !has(self.allocation) || self.allocation == 'Auto'",
            lambda placement: placement.device is Device.GPU or placement.allocation is GPUAllocation.AUTO,
            "allocation is for device GPU: remove it or write device: GPU",
        ),
        label_keys("node_selector", "nodeSelector"),
        Rule(
            "!has(self.topologyKey) || self.topologyKey == '' || "
            "!format.qualifiedName().validate(self.topologyKey).hasValue()",
            lambda placement: not placement.topology_key or is_label_key(placement.topology_key),
            "topologyKey is not a label key: write name or domain/name, for example "
            "topology.kubernetes.io/zone",
        ),
        Rule(
            "self.device == 'GPU' || !has(self.topologyKey) || self.topologyKey == ''",
            lambda placement: placement.device is Device.GPU or not placement.topology_key,
            "topologyKey is for device GPU, where a replica may span nodes: remove it or write device: GPU",
        ),
    )


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

    name: Annotated[
        str,
        Field(min_length=1, max_length=128),
        Matches(
            r"^[A-Za-z_][A-Za-z0-9_]*$",
            "not a variable name: write letters, digits and '_', not beginning with a digit",
        ),
    ]
    """Variable name. Names that start with PLIMSOLL_ belong to the plan."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Value."""

    RULES = (
        Rule(
            "!self.name.startsWith('PLIMSOLL_')",
            lambda variable: not variable.name.startswith("PLIMSOLL_"),
            "variables named PLIMSOLL_* belong to the plan: rename it",
        ),
    )


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
    annotations: Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = (
        Field(default_factory=dict)
    )
    """Annotations added to worker pods."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Environment of the worker container."""
    resources: ContainerResources = Field(default_factory=ContainerResources)
    """CPU of the worker container."""
    image_pull_secrets: Annotated[
        list[LocalObjectReference], Field(max_length=8, json_schema_extra=list_map("name"))
    ] = Field(default_factory=list)
    """Secrets to pull images with, also for the inspect pod."""
    runtime_class_name: ShortText = ""
    """RuntimeClass of worker pods, for example nvidia."""

    RULES = (
        label_keys("labels", "labels"),
        label_keys("annotations", "annotations"),
        Rule(
            "!has(self.labels) || !self.labels.exists(key, key.startsWith('plimsoll.dev/') || "
            "key.startsWith('app.kubernetes.io/'))",
            lambda template: (
                not any(key.startswith(("plimsoll.dev/", "app.kubernetes.io/")) for key in template.labels)
            ),
            "labels plimsoll.dev/* and app.kubernetes.io/* belong to the operator: rename them",
        ),
        Rule(
            "!has(self.annotations) || !self.annotations.exists(key, key.startsWith('plimsoll.dev/'))",
            lambda template: not any(key.startswith("plimsoll.dev/") for key in template.annotations),
            "annotations plimsoll.dev/* belong to the operator: rename them",
        ),
    )


_ON_GPU = "!has(self.placement) || !has(self.placement.device) || self.placement.device == 'GPU'"


class LLMDeploymentSpec(Model):
    """What to serve. Six lines are enough: everything but `model` has a default."""

    model: ModelSource
    """Where the model comes from."""
    workload: Workload = Field(default_factory=Workload)
    """What must fit into memory at the same time, and how fast it must be."""
    quantization: Quantization = Field(default_factory=Quantization)
    """Precision of what is kept in device memory."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """How a replica is cut over GPUs."""
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

    RULES = (
        Rule(
            f"{_ON_GPU} || !has(self.parallelism) || !has(self.parallelism.tensor) || "
            "self.parallelism.tensor == 1",
            lambda spec: spec.placement.device is Device.GPU or spec.parallelism.tensor in (None, 1),
            "parallelism.tensor is for device GPU: remove it, or write placement.device: GPU",
        ),
        Rule(
            "!has(self.placement) || !has(self.placement.sharing) || self.placement.sharing != 'MIG' || "
            "!has(self.parallelism) || ((!has(self.parallelism.tensor) || self.parallelism.tensor == 1) && "
            "(!has(self.parallelism.pipeline) || self.parallelism.pipeline == 1))",
            lambda spec: (
                spec.placement.sharing is GPUSharing.EXCLUSIVE
                or {spec.parallelism.tensor, spec.parallelism.pipeline} <= {None, 1}
            ),
            "a model is not cut over MIG slices: remove parallelism.tensor and pipeline, or sharing: MIG",
        ),
        Rule(
            f"{_ON_GPU} || !has(self.workload) || ((!has(self.workload.objective) || "
            "self.workload.objective in ['FewestGPUs', 'Quality']) && (!has(self.workload.targets) || "
            "(!has(self.workload.targets.timePerOutputTokenMilliseconds) && "
            "!has(self.workload.targets.timeToFirstTokenMilliseconds))))",
            lambda spec: (
                spec.placement.device is Device.GPU
                or not (spec.workload.objective.predicted or spec.workload.targets != Targets())
            ),
            "times are predicted for device GPU: remove workload.targets, write objective: FewestGPUs or "
            "Quality, or write placement.device: GPU",
        ),
    )
