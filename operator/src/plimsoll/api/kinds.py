"""The kinds of objects that Plimsoll adds to a cluster, as their CustomResourceDefinitions are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plimsoll.api.v1alpha1 import GROUP, KIND, MAX_NAME_LENGTH, PLURAL, LLMDeployment, Model
from plimsoll.api.v1alpha1.profile import PROFILE_KIND, PROFILE_PLURAL, MemoryProfile


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; priority 1 shows with `-o wide`."""

    name: str
    type: str
    priority: int
    path: str
    description: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "priority": self.priority,
            "jsonPath": self.path,
            "description": self.description,
        }


@dataclass(frozen=True)
class CustomKind:
    """One kind, and what its models do not say."""

    model: type[Model]
    kind: str
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    rules: tuple[dict[str, str], ...] = ()
    """CEL rules over the whole object."""
    subresources: dict[str, Any] = field(default_factory=lambda: {"status": {}})

    @property
    def file_name(self) -> str:
        return f"{self.plural}.{GROUP}.yaml"


_NAME_RULE = {
    "rule": f"self.metadata.name.matches('^[a-z]([-a-z0-9]{{0,{MAX_NAME_LENGTH - 2}}}[a-z0-9])?$')",
    "message": f"metadata.name also names Services and pods: write at most {MAX_NAME_LENGTH} lower case "
    "letters, digits and '-', beginning with a letter and ending with a letter or digit",
    "fieldPath": ".metadata.name",
}

LLM_DEPLOYMENT = CustomKind(
    model=LLMDeployment,
    kind=KIND,
    plural=PLURAL,
    short_name="llmdep",
    rules=(_NAME_RULE,),
    subresources={
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    },
    columns=(
        Column(
            "Ready",
            "string",
            0,
            '.status.conditions[?(@.type=="Ready")].status',
            "Whether all replicas of this generation answer.",
        ),
        Column("Reason", "string", 0, '.status.conditions[?(@.type=="Ready")].reason', "Why, in one word."),
        Column(
            "Model",
            "string",
            0,
            ".spec.model['huggingFace.repo','persistentVolumeClaim.path','persistentVolumeClaim.claimName']",
            "The repository, or the path on the volume, or the claim.",
        ),
        Column("Plan", "string", 0, ".status.plans[0].summary", "Precision, shards and devices."),
        Column("Replicas", "integer", 0, ".spec.replicas", "Replicas asked for."),
        Column("Serving", "integer", 0, ".status.readyReplicas", "Replicas that answer."),
        Column("Age", "date", 0, ".metadata.creationTimestamp", "Time since creation."),
        Column("URL", "string", 1, ".status.url", "Address of the OpenAI API inside the cluster."),
        Column(
            "Message", "string", 1, '.status.conditions[?(@.type=="Ready")].message', "Why, in a sentence."
        ),
    ),
)

MEMORY_PROFILE = CustomKind(
    model=MemoryProfile,
    kind=PROFILE_KIND,
    plural=PROFILE_PLURAL,
    short_name="memprof",
    columns=(
        Column("Model", "string", 0, ".spec.fingerprint.modelRevision", "Revision of the model."),
        Column("Product", "string", 0, ".spec.fingerprint.product", "GPU product; empty on CPU."),
        Column("Weights", "string", 0, ".spec.fingerprint.weights", "Precision of the weights."),
        Column("TP", "integer", 0, ".spec.fingerprint.tensorParallel", "GPUs a stage is divided over."),
        Column("Observed", "integer", 0, ".status.observations", "Starts that agree."),
        Column("Margin", "integer", 0, ".status.marginBytes", "Bytes kept free beside the measured ones."),
        Column("Age", "date", 0, ".metadata.creationTimestamp", "Time since creation."),
        Column("Engine", "string", 1, ".spec.fingerprint.engineVersion", "Version of the engine."),
        Column("Expires", "date", 1, ".status.expiryTime", "When it is forgotten."),
    ),
)

KINDS = (LLM_DEPLOYMENT, MEMORY_PROFILE)
