"""The configurations that could serve a deployment: precision × tensor parallel × kind of device, with their
bytes.

Every option is computed, also those that the engine cannot run yet or that no GPU holds: the answer to "why
not" is an option with a reason. Pipeline parallel is 1 until the engine runs more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus, StageMemory, WeightsPrecision
from plimsoll.inventory.quantity import at_least
from plimsoll.inventory.views import NodeView, Resources
from plimsoll.model.facts import ModelFacts
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import NodeGPUs
from plimsoll.sizing.footprint import Configuration, Footprint, Workload, footprint
from plimsoll.sizing.host import cpu_request, ephemeral_storage, host_memory
from plimsoll.sizing.kv_cache import BLOCK_TOKENS, pool_tokens
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll.sizing.runtime import line
from plimsoll.sizing.weights import native_precision
from plimsoll_worker.launch import Capabilities, Device, Precision

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Sizes that fill nodes of 1, 2, 4 and 8 GPUs without a rest; a divisibility chain, so packing stays
exact."""
DEFAULT_CONTEXT_TOKENS = 8192
"""Longest context that must fit when nobody says: most chats stay far below, and long-context models would
ask for hundreds of GiB of KV cache unasked."""
DEFAULT_BATCHED_TOKENS = 2048
"""Prefill chunk. Activations grow with it and 2048 tokens already keep the GPU's arithmetic busy (vLLM's
default for chunked prefill is the same)."""
SIZE_CLASS_BYTES = 8 << 30
"""GPUs are of one size when they round to the same multiple: an H100 has 79.6 GiB, an A100 80.0."""
BF16_CAPABILITY = (8, 0)
"""Tensor cores compute BF16 from compute capability 8.0 on."""


@dataclass(frozen=True, slots=True)
class Option:
    """One configuration on one kind of device."""

    name: str
    """For people: BF16 TP2 on NVIDIA-L4."""
    draft: PlanStatus
    """The plan without its placements."""
    footprint: Footprint
    requests: Resources
    """Of one worker pod."""
    nodes: tuple[NodeView, ...]
    """Admitted nodes of this kind that have enough GPUs in all, taken or not."""
    refusal: str
    """Why the engine does not run it; empty when it does."""

    @property
    def needed(self) -> int:
        """Bytes of the fullest rank."""
        return self.footprint.worst.total

    @property
    def line(self) -> int:
        return min(stage.line for stage in self.draft.memory)

    @property
    def fits(self) -> bool:
        return self.needed <= self.line

    @property
    def gpus(self) -> int:
        return self.draft.tensor_parallel * self.draft.pipeline_parallel if self.draft.product else 0


def workload(spec: LLMDeploymentSpec, facts: ModelFacts) -> Workload:
    """What must fit at the same time, with the defaults filled in."""
    context = spec.workload.max_context_tokens or min(facts.max_position, DEFAULT_CONTEXT_TOKENS)
    sequences = spec.workload.max_concurrent_sequences
    batched = spec.workload.max_batched_tokens or min(DEFAULT_BATCHED_TOKENS, context * sequences)
    return Workload(max_context_tokens=context, max_sequences=sequences, max_batched_tokens=batched)


def precision(spec: LLMDeploymentSpec, facts: ModelFacts) -> Precision:
    if spec.quantization.weights is WeightsPrecision.NATIVE:
        return native_precision(facts, spec.placement.device)
    return Precision(spec.quantization.weights.value)


def configuration(device: Device, weights: Precision, tensor: int) -> Configuration:
    """The KV cache has the precision that the engine computes in."""
    return Configuration(device=device, weights=weights, kv_cache=weights, tensor_parallel=tensor)


def worker_requests(plan: PlanStatus, spec: LLMDeploymentSpec, facts: ModelFacts) -> Resources:
    """Requests of one worker pod of the plan. Planner and pod builder both use this and nothing else."""
    config = Configuration(
        device=plan.device,
        weights=plan.weights,
        kv_cache=plan.kv_cache,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
    )
    cpu = spec.pod_template.resources.cpu
    return Resources(
        cpu_millis=at_least(cpu, 1000) if cpu else cpu_request(Footprint(config, workload(spec, facts), ())),
        memory_bytes=plan.host_memory_bytes,
        ephemeral_bytes=ephemeral_storage(facts, fetches=spec.model.hugging_face is not None),
        pods=1,
        extended={plan.resource_name: plan.tensor_parallel} if plan.resource_name else {},
    )


def cpu_option(request: DeploymentRequest, capabilities: Capabilities, nodes: Iterable[NodeView]) -> Option:
    """The one option without GPUs: everything in the node's memory."""
    weights = precision(request.spec, request.facts)
    sized = footprint(
        request.facts, configuration(Device.CPU, weights, 1), workload(request.spec, request.facts)
    )
    headroom = request.spec.placement.memory_headroom_percent
    host = host_memory(request.facts, sized, headroom_percent=headroom)
    draft = _draft(request, sized, line(host, headroom), host)
    return Option(
        name=f"{weights} on CPU",
        draft=draft,
        footprint=sized,
        requests=worker_requests(draft, request.spec, request.facts),
        nodes=tuple(nodes),
        refusal=_refusal(capabilities, sized.configuration, None),
    )


def gpu_options(
    request: DeploymentRequest, capabilities: Capabilities, gpus: Iterable[NodeGPUs]
) -> tuple[Option, ...]:
    """An option for each product and each tensor-parallel size that divides the model, up to the first that
    fits all its GPUs: more ranks of the same GPU would only take more. Cheapest first: fewest GPUs, then the
    smaller GPU, then name."""
    by_product: dict[tuple[str, str], list[NodeGPUs]] = {}
    for entry in gpus:
        by_product.setdefault((entry.gpu.product, entry.gpu.resource_name), []).append(entry)
    weights = precision(request.spec, request.facts)
    headroom = request.spec.placement.memory_headroom_percent
    options: list[tuple[tuple[int, ...], Option]] = []
    for tensor in TENSOR_PARALLEL:
        config = configuration(Device.GPU, weights, tensor)
        try:
            sized = footprint(request.facts, config, workload(request.spec, request.facts))
        except ParallelRefused:
            continue
        for product, entries in list(by_product.items()):
            wide = [entry for entry in entries if entry.gpu.total >= tensor]
            if not wide:
                continue
            memory = _least_memory(sized, wide, headroom)
            option = _gpu_option(request, capabilities, sized, wide, memory)
            options.append(((tensor, *_expense(wide[0], memory)), option))
            if line(min(entry.gpu.memory_bytes for entry in entries), headroom) >= sized.worst.total:
                del by_product[product]
    ordered = sorted(options, key=lambda pair: (pair[0], pair[1].draft.product))
    return tuple(option for _, option in ordered)


def _expense(entry: NodeGPUs, memory: int) -> tuple[int, ...]:
    """Sort key, cheapest first. Prices are not known; a GPU with less memory, or of an older generation with
    about the same, costs less everywhere."""
    return round(memory / SIZE_CLASS_BYTES), *(entry.gpu.compute_capability or (0, 0)), memory


def _least_memory(sized: Footprint, entries: list[NodeGPUs], headroom: int) -> int:
    """GPUs of one product differ by driver: the smallest memory that holds the footprint admits the most
    nodes."""
    distinct = sorted({entry.gpu.memory_bytes for entry in entries})
    return next((memory for memory in distinct if line(memory, headroom) >= sized.worst.total), distinct[-1])


def _gpu_option(
    request: DeploymentRequest,
    capabilities: Capabilities,
    sized: Footprint,
    entries: list[NodeGPUs],
    memory: int,
) -> Option:
    gpu = entries[0].gpu
    config = sized.configuration
    drawn = line(memory, request.spec.placement.memory_headroom_percent)
    draft = _draft(
        request, sized, drawn, host_memory(request.facts, sized), gpu.product, resource=gpu.resource_name
    )
    return Option(
        name=f"{config.weights} TP{config.tensor_parallel} on {gpu.product}",
        draft=draft,
        footprint=sized,
        requests=worker_requests(draft, request.spec, request.facts),
        nodes=tuple(entry.node for entry in entries if entry.gpu.memory_bytes >= memory),
        refusal=_refusal(capabilities, config, gpu.compute_capability),
    )


def option_in_force(
    request: DeploymentRequest, plan: PlanStatus, gpus: Iterable[NodeGPUs], nodes: Iterable[NodeView]
) -> Option:
    """The configuration of a plan in force, for more replicas of it."""
    config = Configuration(
        device=plan.device,
        weights=plan.weights,
        kv_cache=plan.kv_cache,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
    )
    drawn = max(stage.line for stage in plan.memory)
    headroom = request.spec.placement.memory_headroom_percent
    alike = (
        entry.node
        for entry in gpus
        if entry.gpu.product == plan.product
        and entry.gpu.resource_name == plan.resource_name
        and entry.gpu.total >= plan.tensor_parallel
        and line(entry.gpu.memory_bytes, headroom) >= drawn
    )
    on = f"TP{plan.tensor_parallel} on {plan.product}" if plan.product else "on CPU"
    return Option(
        name=f"{plan.weights} {on}",
        draft=plan.model_copy(update={"placements": [], "rejected": []}),
        footprint=footprint(request.facts, config, workload(request.spec, request.facts)),
        requests=worker_requests(plan, request.spec, request.facts),
        nodes=tuple(nodes) if plan.device is Device.CPU else tuple(alike),
        refusal="",
    )


def _refusal(capabilities: Capabilities, config: Configuration, capability: tuple[int, int] | None) -> str:
    engine = f"engine {capabilities.engine_version}"
    runs = capabilities.weights.get(config.device, ())
    if config.weights not in runs:
        known = " or ".join(runs) or "nothing"
        return f"{engine} runs {known} on {config.device}: set quantization.weights to that"
    if config.tensor_parallel > capabilities.max_tensor_parallel:
        return f"{engine} runs tensor parallel {capabilities.max_tensor_parallel}"
    if config.weights is Precision.BF16 and capability is not None and capability < BF16_CAPABILITY:
        has = ".".join(map(str, capability))
        return (
            f"BF16 needs compute capability 8.0 and the GPU has {has}; quantization.weights: FP32 runs there"
        )
    return ""


def _draft(
    request: DeploymentRequest,
    sized: Footprint,
    drawn: int,
    host: int,
    product: str = "",
    *,
    resource: str = "",
) -> PlanStatus:
    config, load = sized.configuration, sized.workload
    draft = PlanStatus(
        revision=request.revision,
        id="",
        summary="",
        device=config.device,
        product=product,
        resource_name=resource,
        weights=config.weights,
        kv_cache=config.kv_cache,
        tensor_parallel=config.tensor_parallel,
        pipeline_parallel=config.pipeline_parallel,
        stage_layers=[stage.layers[1] - stage.layers[0] for stage in sized.stages],
        max_batched_tokens=load.max_batched_tokens,
        max_context_tokens=load.max_context_tokens,
        kv_cache_tokens=pool_tokens(
            context=load.max_context_tokens, sequences=load.max_sequences, kv_tokens=None, block=BLOCK_TOKENS
        ),
        kv_cache_bytes=max(stage.bytes.kv_cache for stage in sized.stages),
        memory=[
            StageMemory(stage=stage.stage, predicted=stage.bytes, line=drawn, total=stage.total)
            for stage in sized.stages
        ],
        host_memory_bytes=host,
        placements=[],
    )
    return draft.model_copy(update={"id": _plan_id(draft)})


def _plan_id(draft: PlanStatus) -> str:
    """A hash over everything that a worker runs by, placements left out: adding a replica must not rename,
    and so restart, the replicas that serve."""
    told = draft.model_dump_json(exclude={"id", "summary", "placements", "rejected"})
    return hashlib.sha256(told.encode()).hexdigest()[:8]
