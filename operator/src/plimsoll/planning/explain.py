"""A plan in words and sums: for the command line, the demo, and whoever asks why this GPU.

The terms are computed again from the model's facts, with the very functions that made the plan. Where a plan
in force was made by an older version with other constants, its own bytes stay in the totals, and the
difference is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import (
    LLMDeploymentSpec,
    MeasuredStage,
    PlanStatus,
    PrecisionFloor,
    Predicted,
    StageMemory,
    WeightsPrecision,
)
from plimsoll.inventory.capacity import free_by_node, held_on
from plimsoll.inventory.gpu_class import Allocation, GPUClass
from plimsoll.inventory.views import NodeView, PodView
from plimsoll.model.facts import ModelFacts
from plimsoll.planning import words
from plimsoll.planning.candidates import TENSOR_PARALLEL
from plimsoll.planning.eligibility import Eligibility
from plimsoll.planning.forecast import has_targets
from plimsoll.planning.formats import formats_of
from plimsoll.planning.options import planned_configuration, planned_workload
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import Wanted
from plimsoll.sizing.footprint import Term, footprint
from plimsoll_worker.launch import Device, MemoryCategory, PredictedMemory

_NAMES = {field.alias or name: name for name, field in PredictedMemory.model_fields.items()}


@dataclass(frozen=True, slots=True)
class CategorySum:
    """One memory category of a stage, bytes on the fullest rank."""

    category: str
    predicted: int
    terms: tuple[Term, ...]
    """What it is made of; empty when the model's facts are not at hand."""
    measured: int | None = None

    @property
    def recomputed(self) -> int:
        """What this version predicts; a plan in force keeps the bytes it was made with."""
        return sum(term.bytes for term in self.terms)


@dataclass(frozen=True, slots=True)
class StageSum:
    """One stage against its line."""

    stage: int
    categories: tuple[CategorySum, ...]
    total: int
    line: int
    measured_total: int | None = None

    @property
    def spare(self) -> int:
        return self.line - self.total


@dataclass(frozen=True, slots=True)
class NodePicture:
    """The GPUs of one node, one letter each in `drawn`: # taken, P this plan, . free, x free and out of the
    question."""

    node: str
    product: str
    used: int
    planned: int
    free: int
    barred: str = ""
    """Why no new pod of the deployment goes there; empty where one may."""

    @property
    def drawn(self) -> str:
        return "#" * self.used + "P" * self.planned + ("x" if self.barred else ".") * self.free


Bars = Callable[[NodeView, GPUClass], str]
"""Why a deployment may not use the GPUs of a kind on a node; empty when it may."""


def bars(request: DeploymentRequest) -> Bars:
    """What its placement, volume and exclusions rule out, and what nobody can use."""
    wanted, eligibility = Wanted(request.spec.placement), Eligibility(request)

    def told(node: NodeView, gpu: GPUClass) -> str:
        refusal = unusable(node, gpu) or wanted.mismatch(gpu)
        obstacle = None if refusal else eligibility.obstacle(node)
        return obstacle.words if obstacle else refusal

    return told


def unusable(_node: NodeView, gpu: GPUClass) -> str:
    """What no deployment can use."""
    return "" if gpu.usable else gpu.reason


def stage_sums(
    plan: PlanStatus,
    spec: LLMDeploymentSpec,
    facts: ModelFacts | None = None,
    measured: Iterable[MeasuredStage] = (),
) -> tuple[StageSum, ...]:
    """The arithmetic of every stage, predicted beside measured where the workers reported."""
    terms = _terms(plan, spec, facts) if facts is not None else {}
    found = {stage.stage: stage for stage in measured}
    return tuple(
        _stage_sum(memory, terms.get(memory.stage, ()), found.get(memory.stage)) for memory in plan.memory
    )


def _terms(plan: PlanStatus, spec: LLMDeploymentSpec, facts: ModelFacts) -> dict[int, tuple[Term, ...]]:
    config = planned_configuration(plan)
    return {
        stage.stage: stage.terms
        for stage in footprint(facts, config, planned_workload(plan, spec, facts)).stages
    }


def _stage_sum(memory: StageMemory, terms: Sequence[Term], measured: MeasuredStage | None) -> StageSum:
    categories: list[CategorySum] = []
    for category in MemoryCategory:
        if category is MemoryCategory.UNATTRIBUTED:
            continue
        predicted = getattr(memory.predicted, _NAMES[category.value])
        seen = getattr(measured.bytes, _NAMES[category.value]) if measured else None
        if predicted or seen:
            own = tuple(term for term in terms if term.category is category)
            categories.append(CategorySum(category.value, predicted, own, seen))
    if measured is not None and measured.bytes.unattributed:
        categories.append(CategorySum("unattributed", 0, (), measured.bytes.unattributed))
    total = measured.bytes.total if measured else None
    return StageSum(memory.stage, tuple(categories), memory.total, memory.line, total)


def reasons(plan: PlanStatus, spec: LLMDeploymentSpec) -> tuple[str, ...]:
    """Why this plan, one sentence each."""
    stage = max(plan.memory, key=lambda memory: memory.total - memory.line)
    needed, drawn = words.sizes(stage.total, stage.line)
    told = [_precisions(plan, spec), _cache(plan, spec)]
    if plan.predicted is not None:
        told.append(_speed(plan.predicted, plan, spec))
    if plan.device is Device.CPU:
        host = words.size(plan.host_memory_bytes)
        told.append(
            f"the container asks for {host} of memory: its line is {drawn} and {needed} are predicted"
        )
    else:
        smaller = max((size for size in TENSOR_PARALLEL if size < plan.tensor_parallel), default=0)
        # Where times or a cut were asked for, more GPUs than the model needs are taken on purpose.
        cheapest = not (spec.workload.objective.predicted or has_targets(spec) or spec.parallelism.tensor)
        alone = smaller and plan.pipeline_parallel == 1 and cheapest
        fewest = f"; {words.count(smaller, 'GPU')} would not hold it" if alone else ""
        each = f", {plan.tensor_parallel} a stage" if plan.pipeline_parallel > 1 else ""
        gpus = words.count(plan.tensor_parallel * plan.pipeline_parallel, "GPU")
        told.append(
            f"{gpus} of {plan.product} a replica{each}: {needed} a GPU under a line of {drawn}{fewest}"
        )
        if plan.allocation == Allocation.DRA:
            device_class = plan.resource_name.partition("/")[0]
            told.append(f"GPUs are claimed by DRA, from the DeviceClass {device_class}")
    return tuple(told)


def _precisions(plan: PlanStatus, spec: LLMDeploymentSpec) -> str:
    asked, kept = spec.quantization, formats_of(plan)
    exact = asked.weights is WeightsPrecision.NATIVE or (
        asked.weights is WeightsPrecision.AUTO and asked.floor is PrecisionFloor.NATIVE
    )
    why = "so that nothing is rounded" if exact else "as spec.quantization allows"
    weights = f"as the {kept.checkpoint} checkpoint stores them" if kept.checkpoint else f"in {kept.weights}"
    rest = f", what is not quantized in {kept.compute}" if kept.compute is not kept.weights else ""
    return f"weights are kept {weights}{rest}, {why}; the KV cache in {kept.kv_cache}"


def _speed(predicted: Predicted, plan: PlanStatus, spec: LLMDeploymentSpec) -> str:
    step, first = predicted.time_per_output_token_microseconds, predicted.time_to_first_token_microseconds
    sequences = words.count(spec.workload.max_concurrent_sequences, "sequence")
    context = spec.workload.mean_context_tokens or plan.max_context_tokens
    basis = "by the GPU's datasheet" if predicted.basis == "Roofline" else "by what was measured"
    return (
        f"{sequences} of {context} tokens are predicted {step / 1000:.1f} ms per output token and "
        f"{first / 1000:.0f} ms to the first, {predicted.tokens_per_second} tokens a second in all, {basis}; "
        f"prompts are read {plan.max_batched_tokens} tokens at a time"
    )


def _cache(plan: PlanStatus, spec: LLMDeploymentSpec) -> str:
    sequences = words.count(spec.workload.max_concurrent_sequences, "sequence")
    mean = spec.workload.mean_context_tokens
    each = f"{plan.max_context_tokens}" if mean is None else f"{mean} in the mean, up to"
    longest = "" if mean is None else f" {plan.max_context_tokens} each"
    return (
        f"the KV cache holds {plan.kv_cache_tokens} tokens: {sequences} of {each}{longest}, in whole blocks"
    )


def pictures(
    nodes: Iterable[NodeView],
    pods: Iterable[PodView],
    plan: PlanStatus | None,
    own_uid: str = "",
    barred: Bars = unusable,
) -> tuple[NodePicture, ...]:
    """The GPUs of every node: taken by others, taken by this plan, free, and free to no use. Pods of
    `own_uid` on a planned node are the plan's own and are not counted twice."""
    planned: dict[str, int] = {}
    for placement in plan.placements if plan else ():
        planned[placement.node] = planned.get(placement.node, 0) + placement.gpus
    others = [pod for pod in pods if not (own_uid and pod.owner_uid == own_uid and held_on(pod) in planned)]
    ordered = sorted(nodes, key=lambda node: node.name)
    free = free_by_node(ordered, others)
    drawn: list[NodePicture] = []
    for node in ordered:
        for gpu in node.gpus:
            left = max(0, free[node.name].extended.get(gpu.resource_name, 0))
            mine = planned.get(node.name, 0) if plan and gpu.resource_name == plan.resource_name else 0
            used, rest = max(0, gpu.total - left), max(0, left - mine)
            name = gpu.product or f"({gpu.vendor})"
            drawn.append(NodePicture(node.name, name, used, mine, rest, barred(node, gpu) if rest else ""))
    return tuple(drawn)
