"""LLMDeployment `plimsoll.dev/v1alpha1`: the resource as typed, frozen models.

These models are the source of the CustomResourceDefinition (`python -m plimsoll.api.crd` writes `crds/`):
docstrings become the descriptions that `kubectl explain` prints, constraints become the schema that the API
server enforces, rules stand beside the model they guard. The schema holds only fields that work today; it
grows with the program.

    fields   the vocabulary: checked text, quantities, rules
    spec     what a user asks for
    workload what the model has to do, and how it may be cut and rounded
    rollout  how plans are used and replicas replaced
    status   what the operator found, decided and measured
"""

from __future__ import annotations

from pydantic import Field

from plimsoll.api.v1alpha1.fields import Model, Quantity
from plimsoll.api.v1alpha1.rollout import PlanMode, PlanPolicy, Replan, Rollout, RolloutStrategy
from plimsoll.api.v1alpha1.spec import (
    Accelerators,
    ContainerResources,
    Engine,
    EnvVar,
    GPUAllocation,
    GPUSharing,
    HuggingFaceSource,
    LLMDeploymentSpec,
    LocalObjectReference,
    ModelSource,
    PersistentVolumeClaimSource,
    Placement,
    PodTemplate,
    SecretKeyRef,
    ServiceSpec,
    Toleration,
)
from plimsoll.api.v1alpha1.status import (
    Condition,
    Exclusion,
    LastFailure,
    LLMDeploymentStatus,
    MeasuredStage,
    ModelStatus,
    PlanPlacement,
    PlanStatus,
    Predicted,
    RejectedOption,
    ReplicaStatus,
    StageMemory,
    StartupTime,
)
from plimsoll.api.v1alpha1.workload import (
    KVCachePrecision,
    MultiNode,
    Objective,
    Parallelism,
    PrecisionFloor,
    Quantization,
    Targets,
    WeightsPrecision,
    Workload,
)

GROUP = "plimsoll.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
MAX_NAME_LENGTH = 40


class LLMDeployment(Model):
    """A large language model, served: the operator computes its memory, chooses precision, GPUs and nodes."""

    spec: LLMDeploymentSpec
    """What to serve."""
    status: LLMDeploymentStatus = Field(default_factory=LLMDeploymentStatus)
    """What is."""


__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "MAX_NAME_LENGTH",
    "PLURAL",
    "VERSION",
    "Accelerators",
    "Condition",
    "ContainerResources",
    "Engine",
    "EnvVar",
    "Exclusion",
    "GPUAllocation",
    "GPUSharing",
    "HuggingFaceSource",
    "KVCachePrecision",
    "LLMDeployment",
    "LLMDeploymentSpec",
    "LLMDeploymentStatus",
    "LastFailure",
    "LocalObjectReference",
    "MeasuredStage",
    "Model",
    "ModelSource",
    "ModelStatus",
    "MultiNode",
    "Objective",
    "Parallelism",
    "PersistentVolumeClaimSource",
    "Placement",
    "PlanMode",
    "PlanPlacement",
    "PlanPolicy",
    "PlanStatus",
    "PodTemplate",
    "PrecisionFloor",
    "Predicted",
    "Quantity",
    "Quantization",
    "RejectedOption",
    "Replan",
    "ReplicaStatus",
    "Rollout",
    "RolloutStrategy",
    "SecretKeyRef",
    "ServiceSpec",
    "StageMemory",
    "StartupTime",
    "Targets",
    "Toleration",
    "WeightsPrecision",
    "Workload",
]
