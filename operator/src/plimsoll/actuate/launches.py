"""A plan as the launch of one worker: what the operator decided, in the words of the launch contract."""

from __future__ import annotations

from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus
from plimsoll_worker.launch import HubSource, Launch, LayerRange, WeightsScheme

MODELS = "/models"
"""Where a claim is mounted, read-only."""
HUB_FOLDER = MODELS
"""Where a worker fetches a hub's files into; the same folder, because a pod has one source."""


def launch(revision: Revision, plan: PlanStatus, placement: PlanPlacement, attempt: int) -> Launch:
    """What the worker of one stage has to run."""
    spec = revision.spec
    stage = next(memory for memory in plan.memory if memory.stage == placement.stage)
    first = sum(plan.stage_layers[: placement.stage])
    return Launch(
        plan_id=plan.id,
        revision=plan.revision,
        replica=placement.replica,
        attempt=attempt,
        model_path=model_path(revision),
        hub=_hub(revision),
        served_name=spec.model.served_name or revision.owner.name,
        device=plan.device,
        expected_product=plan.product or None,
        weights=_weights(plan),
        kv_cache=plan.kv_cache,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        stage=placement.stage,
        layers=LayerRange(first=first, last=first + plan.stage_layers[placement.stage]),
        max_context_tokens=plan.max_context_tokens,
        max_concurrent_sequences=spec.workload.max_concurrent_sequences,
        max_batched_tokens=plan.max_batched_tokens,
        kv_cache_bytes=stage.predicted.kv_cache,
        line=stage.line,
        predicted=stage.predicted,
    )


def _weights(plan: PlanStatus) -> WeightsScheme:
    compute = plan.compute or plan.weights
    if plan.checkpoint_format:
        return WeightsScheme.stored(plan.checkpoint_format, compute)
    if plan.weights.computes:
        return WeightsScheme.plain(plan.weights)
    return WeightsScheme.quantized(plan.weights, compute)


def model_path(revision: Revision) -> str:
    """Folder or GGUF file inside the pod. A folder of the source that holds one GGUF file means that file."""
    claim = revision.spec.model.persistent_volume_claim
    if claim is None:
        return HUB_FOLDER
    path = f"{MODELS}/{claim.path}".rstrip("/")
    file = revision.facts.file
    return path if not file or path.endswith(f"/{file}") else f"{path}/{file}"


def _hub(revision: Revision) -> HubSource | None:
    source = revision.spec.model.hugging_face
    return HubSource(repo=source.repo, commit=revision.facts.revision) if source else None
