"""Small worlds for the planner: nodes with GPUs, pods that hold them, models of a known size."""

from __future__ import annotations

from typing import Any

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus
from plimsoll.inventory.nodes import node_view
from plimsoll.inventory.views import NodeView, PodView, Resources, VolumeView
from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Snapshot
from plimsoll_worker.launch import CAPABILITIES, Capabilities

MIB, GIB = 1 << 20, 1 << 30
GPU = "nvidia.com/gpu"
H100, L4, T4 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L4", "Tesla-T4"
CARDS = {H100: (81559, 9, 0), L4: (23034, 8, 9), T4: (15360, 7, 5)}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
ONE_CARD = CAPABILITIES.model_copy(update={"max_tensor_parallel": 1, "max_pipeline_parallel": 1})
"""An engine that cuts nothing, so that what is asked of a plan is asked of one GPU."""
WIDE = ONE_CARD.model_copy(update={"max_tensor_parallel": 8})
"""An engine that runs tensor parallel."""


def gpu_node(name: str, product: str = H100, gpus: int = 8, **changes: Any) -> NodeView:
    memory, major, minor = CARDS[product]
    labels = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.compute.major": str(major),
        "nvidia.com/gpu.compute.minor": str(minor),
    }
    changes.setdefault("taints", [GPU_TAINT])
    return node(name, gpus=gpus, labels=labels | changes.pop("labels", {}), **changes)


def node(
    name: str,
    *,
    gpus: int = 0,
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
    cpu: str = "96",
    memory: str = "1024Gi",
    ephemeral: str = "2Ti",
    pods: str = "110",
    ready: bool = True,
    cordoned: bool = False,
) -> NodeView:
    allocatable = {"cpu": cpu, "memory": memory, "ephemeral-storage": ephemeral, "pods": pods}
    if gpus:
        allocatable[GPU] = str(gpus)
    return node_view(
        {
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {"taints": taints or [], "unschedulable": cordoned},
            "status": {
                "allocatable": allocatable,
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            },
        }
    )


def pod(
    name: str,
    on: str,
    *,
    gpus: int = 0,
    memory: int = 0,
    owner: str = "",
    bound: bool = True,
    terminating: bool = False,
    labels: dict[str, str] | None = None,
) -> PodView:
    return PodView(
        namespace="other" if not owner else "default",
        name=name,
        uid=f"uid-{name}",
        node=on if bound else "",
        pinned_node="" if bound else on,
        phase="Running" if bound else "Pending",
        terminating=terminating,
        requests=Resources(memory_bytes=memory, pods=1, extended={GPU: gpus} if gpus else {}),
        labels=labels or {},
        owner_uid=owner,
    )


def llama(billions: float = 8.0, *, dtype: str = "BF16", layers: int = 32, **changes: Any) -> ModelFacts:
    """A model of the llama family with about that many parameters and the head counts of Llama 3.1 8B."""
    hidden, heads, kv_heads, head_dim, vocab = 4096, 32, 8, 128, 32000
    attention = hidden * heads * head_dim * 2
    keys = hidden * kv_heads * head_dim * 2
    budget = int(billions * 1e9) - 2 * vocab * hidden - layers * (attention + keys)
    intermediate = max(8, budget // layers // (3 * hidden) // 8 * 8)
    width = 4 if dtype == "F32" else 2

    def group(role: Role, elements: int) -> TensorGroup:
        return TensorGroup(role=role, dtype=dtype, elements=elements, bytes=elements * width)

    per_layer = (
        group(Role.ATTENTION_Q, attention),
        group(Role.ATTENTION_KV, keys),
        group(Role.MLP, 3 * hidden * intermediate),
        group(Role.NORM, 2 * hidden),
    )
    outer = (
        group(Role.EMBEDDING, vocab * hidden),
        group(Role.HEAD, vocab * hidden),
        group(Role.NORM, hidden),
    )
    parameters = sum(g.elements for g in outer) + layers * sum(g.elements for g in per_layer)
    facts = ModelFacts(
        architecture="llama",
        format="safetensors",
        revision="abc123",
        parameters=parameters,
        checkpoint_bytes=parameters * width,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        vocab=vocab,
        max_position=131072,
        tied=False,
        outer=outer,
        layers=(
            LayerClass(
                count=layers, kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim, groups=per_layer
            ),
        ),
    )
    return facts.model_copy(update=changes)


def spec(**fields: Any) -> LLMDeploymentSpec:
    """Fields as in YAML, camelCase; the model defaults to a hub repository."""
    source = {"huggingFace": {"repo": "org/model"}}
    return LLMDeploymentSpec.model_validate({"model": source, **fields})


def request(
    name: str = "a",
    *,
    facts: ModelFacts | None = None,
    priority: int = 0,
    created: str = "2026-01-01T00:00:00Z",
    volume: VolumeView | None = None,
    current: PlanStatus | None = None,
    excluded: frozenset[str] = frozenset(),
    **fields: Any,
) -> DeploymentRequest:
    return DeploymentRequest(
        uid=f"uid-{name}",
        namespace="default",
        name=name,
        generation=1,
        created=created,
        priority=priority,
        spec=spec(**fields),
        facts=facts or llama(),
        revision=f"{name}-0000",
        volume=volume,
        current=current,
        excluded_nodes=excluded,
    )


def snapshot(
    nodes: list[NodeView],
    *deployments: DeploymentRequest,
    pods: list[PodView] | None = None,
    capabilities: Capabilities = ONE_CARD,
    prices: dict[str, int] | None = None,
) -> Snapshot:
    return Snapshot(tuple(nodes), tuple(pods or ()), deployments, capabilities, prices or {})


def decide_one(
    nodes: list[NodeView],
    deployment: DeploymentRequest,
    *,
    pods: list[PodView] | None = None,
    capabilities: Capabilities = ONE_CARD,
) -> Decision:
    return plan(snapshot(nodes, deployment, pods=pods, capabilities=capabilities))[deployment.uid]


def places(decision: Decision) -> list[str]:
    """Nodes by replica."""
    return [placement.node for placement in decision.placements]
