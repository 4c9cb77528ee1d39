"""A plan as the launch of one worker: what the operator decided, in the words of the launch contract.

Stages of a replica are told where the others are before any of them has an address: by names that follow from
the plan. A name is of one attempt, so a pod never finds what is left of the attempt before.
"""

from __future__ import annotations

from plimsoll.actuate.ownership import Owner, digest
from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import PlanPlacement, PlanStatus
from plimsoll_worker.launch import HubSource, Launch, LayerRange, Rendezvous, StageAddress, WeightsScheme

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
        rendezvous=_rendezvous(revision, plan, placement.replica, attempt),
        max_context_tokens=plan.max_context_tokens,
        max_concurrent_sequences=spec.workload.max_concurrent_sequences,
        max_batched_tokens=plan.max_batched_tokens,
        kv_cache_bytes=stage.predicted.kv_cache,
        line=stage.line,
        predicted=stage.predicted,
    )


def workers_subdomain(owner: Owner) -> str:
    """The headless Service under which the pods of a replica have names."""
    return f"{owner.name}-workers"


def stage_hostname(revision: str, replica: int, stage: int, attempt: int) -> str:
    """A DNS label. Not the pod's name, which may be longer than the 63 characters that a label has."""
    return f"r{replica}-s{stage}-a{attempt}-{digest(revision)}"


def _rendezvous(revision: Revision, plan: PlanStatus, replica: int, attempt: int) -> Rendezvous | None:
    if plan.pipeline_parallel == 1:
        return None
    domain = f"{workers_subdomain(revision.owner)}.{revision.owner.namespace}.svc"
    hosts = (
        f"{stage_hostname(revision.name, replica, stage, attempt)}.{domain}"
        for stage in range(plan.pipeline_parallel)
    )
    return Rendezvous(stages=tuple(StageAddress(host=host) for host in hosts))


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
