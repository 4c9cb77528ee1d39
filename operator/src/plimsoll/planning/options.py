"""One configuration on one kind of device: its bytes, what its pods ask for, and the plan it would be.

A plan of a large cluster looks at many options and keeps one, so an option is a few numbers; its draft of a
plan is made when somebody asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus, StageMemory
from plimsoll.inventory.capacity import total
from plimsoll.inventory.gpu_class import GPUClass
from plimsoll.inventory.quantity import at_least
from plimsoll.inventory.views import Resources
from plimsoll.model.facts import ModelFacts
from plimsoll.planning.admission import Admitted
from plimsoll.planning.cost import cost, counted
from plimsoll.planning.forecast import Forecast, Forecaster, has_targets
from plimsoll.planning.formats import Formats, formats_of
from plimsoll.planning.profiles import Asker, Profiles
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.sizing.footprint import Configuration, Footprint, Workload, footprint
from plimsoll.sizing.host import cpu_request, ephemeral_storage
from plimsoll.sizing.kv_cache import BLOCK_TOKENS, pool_tokens
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll.sizing.profile import StageProfile, measured_footprint

DEFAULT_CONTEXT_TOKENS = 8192
"""Longest context that must fit when nobody says: most chats stay far below, and long-context models would
ask for hundreds of GiB of KV cache unasked."""
BATCHED_TOKENS = (2048, 1024, 512)
"""Prefill chunks that are tried where no target asks for another, the usual one first. Activations grow with
it; 2048 tokens keep the GPU's arithmetic busy (vLLM's default for chunked prefill is the same)."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A footprint, and the bytes that its fullest rank needs."""

    footprint: Footprint
    needed: int
    """With the margin that a profile asks for."""
    activations: int
    """Bytes, of the stage that decides."""


class Sizer:
    """Footprints, each computed once a plan: many deployments serve few models in few ways."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._known: dict[Hashable, Sized | None] = {}

    def sized(
        self, request: DeploymentRequest, config: Configuration, load: Workload, product: str
    ) -> Sized | None:
        """On GPUs of a product (empty: CPU), from what was measured there where something was. None when the
        model cannot be cut so. Facts are told apart by identity: the snapshot keeps them alive."""
        facts = request.facts
        asker = Asker(request.namespace, facts.revision, request.worker_image, product)
        profiles = self._profiles.nearest(asker, config, load)
        key = (id(facts), config, load, asker if profiles else None)
        if key not in self._known:
            self._known[key] = _sized(facts, config, load, profiles)
        return self._known[key]


def _sized(
    facts: ModelFacts, config: Configuration, load: Workload, profiles: Mapping[int, StageProfile]
) -> Sized | None:
    try:
        found = (
            measured_footprint(facts, config, load, profiles) if profiles else footprint(facts, config, load)
        )
    except ParallelRefused:
        return None
    margins = {stage: profile.margin for stage, profile in profiles.items()}
    return Sized(
        found,
        needed=max(stage.total + margins.get(stage.stage, 0) for stage in found.stages),
        activations=found.worst.bytes.activations,
    )


@dataclass(frozen=True, eq=False)
class Option:
    """One configuration on one kind of device."""

    request: DeploymentRequest
    formats: Formats
    sized: Sized
    gpu: GPUClass | None
    """The kind of GPU; None on CPU."""
    line: int
    """The most bytes of a device that may be in use."""
    host_memory: int
    """Of one worker container, bytes."""
    admitted: Admitted
    """Nodes of this kind that have enough GPUs in all, taken or not."""
    refusal: str
    """Why the engine does not run it; empty when it does."""
    loss: int = 0
    """Place of the formats among those that the spec allows: 0 loses least."""
    price: int = 0
    """Of the GPUs of one replica, where prices are known."""
    memory: int = 0
    """Of the smallest GPU that is admitted, bytes."""
    forecaster: Forecaster = field(default_factory=Forecaster, repr=False)
    """Shared by the options of a plan."""
    one_node: bool = False
    """All stages of a replica on one node."""
    excluded: bool = False
    """It ran out of memory before."""
    in_force: PlanStatus | None = None
    """The plan that the option continues."""

    @property
    def footprint(self) -> Footprint:
        return self.sized.footprint

    @property
    def config(self) -> Configuration:
        return self.sized.footprint.configuration

    @property
    def needed(self) -> int:
        """Bytes of the fullest rank."""
        return self.sized.needed

    @property
    def fits(self) -> bool:
        return self.needed <= self.line

    @cached_property
    def forecast(self) -> Forecast | None:
        """How fast it will be; None on CPU, and where the GPU's speed is not known."""
        spec, facts = self.request.spec, self.request.facts
        if self.gpu is None:
            return None
        return self.forecaster.forecast(spec, facts, self.config, self.gpu, self.footprint.workload)

    @cached_property
    def keeps_targets(self) -> bool:
        if self.in_force or not has_targets(self.request.spec):
            return True
        return self.forecast is not None and self.forecast.missed is None

    @property
    def runs(self) -> bool:
        """Whether it may be chosen where it has room."""
        return self.fits and not self.refusal and not self.excluded and self.keeps_targets

    @property
    def product(self) -> str:
        return self.gpu.product if self.gpu else ""

    @property
    def resource(self) -> str:
        return self.gpu.resource_name if self.gpu else ""

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.config.tensor_parallel * self.config.pipeline_parallel if self.gpu else 0

    @cached_property
    def cost(self) -> int:
        """Of one replica; only compared with other options of the same plan."""
        if self.gpu is None or self.in_force:
            return 0
        objective = self.request.spec.workload.objective
        timed = objective.predicted and not self.refusal
        latency = self.forecast.latency if timed and self.forecast else None
        return cost(
            objective=counted(objective, loss=self.loss, gpus=self.gpus, latency=latency),
            price=self.price,
            stages=self.config.pipeline_parallel,
            gpus=self.gpus,
            loss=self.loss,
            memory=self.memory,
            capability=self.gpu.compute_capability or (0, 0),
        )

    @property
    def gpus_together(self) -> int:
        """That must be on one node."""
        return self.gpus if self.one_node else self.config.tensor_parallel

    @cached_property
    def shape(self) -> str:
        """For people: BF16 TP2, INT8 TP2xPP3 with FP8 KV cache; on CPU FP32, FP32 PP2."""
        stages = f"PP{self.config.pipeline_parallel}" if self.config.pipeline_parallel > 1 else ""
        ranks = f"TP{self.config.tensor_parallel}" if self.gpu else ""
        cut = f" {ranks}x{stages}" if ranks and stages else f" {ranks}{stages}".rstrip()
        cache = f" with {self.formats.cache_name}" if self.formats.cache_name else ""
        return f"{self.formats.weights_name}{cut}{cache}"

    @cached_property
    def name(self) -> str:
        """For people: BF16 TP2 on NVIDIA-L4."""
        return f"{self.shape} on {self.product or 'CPU'}"

    @cached_property
    def requests(self) -> Resources:
        """Of one worker pod."""
        return _requests(
            self.config,
            self.request.spec,
            self.request.facts,
            memory=self.host_memory,
            resource=self.resource,
        )

    @cached_property
    def requests_together(self) -> Resources:
        """Of the pods that must be on one node."""
        return total([self.requests] * (self.config.pipeline_parallel if self.one_node else 1))

    @cached_property
    def draft(self) -> PlanStatus:
        """The plan without its placements."""
        return self.in_force or _draft(self)


def workload(spec: LLMDeploymentSpec, facts: ModelFacts) -> Workload:
    """What must fit at the same time, with the defaults filled in."""
    asked = spec.workload
    context = asked.max_context_tokens or min(facts.max_position, DEFAULT_CONTEXT_TOKENS)
    sequences = asked.max_concurrent_sequences
    mean = asked.mean_context_tokens
    return Workload(
        max_context_tokens=context,
        max_sequences=sequences,
        max_batched_tokens=asked.max_batched_tokens or min(BATCHED_TOKENS[0], context * sequences),
        kv_tokens=None if mean is None else sequences * min(mean, context),
    )


def workloads(spec: LLMDeploymentSpec, facts: ModelFacts) -> list[Workload]:
    """The same with each token budget that may be planned, the usual one first."""
    usual = workload(spec, facts)
    if spec.workload.max_batched_tokens:
        return [usual]
    smaller = (budget for budget in BATCHED_TOKENS if budget < usual.max_batched_tokens)
    return [usual, *(replace(usual, max_batched_tokens=budget) for budget in smaller)]


def planned_workload(plan: PlanStatus, spec: LLMDeploymentSpec, facts: ModelFacts) -> Workload:
    """What a plan was made for."""
    return replace(
        workload(spec, facts),
        max_context_tokens=plan.max_context_tokens,
        max_batched_tokens=plan.max_batched_tokens,
    )


def planned_configuration(plan: PlanStatus) -> Configuration:
    return formats_of(plan).configuration(plan.device, plan.tensor_parallel, plan.pipeline_parallel)


def worker_requests(plan: PlanStatus, spec: LLMDeploymentSpec, facts: ModelFacts) -> Resources:
    """Requests of one worker pod of the plan. Planner and pod builder both use this and nothing else."""
    config = planned_configuration(plan)
    return _requests(config, spec, facts, memory=plan.host_memory_bytes, resource=plan.resource_name)


def _requests(
    config: Configuration, spec: LLMDeploymentSpec, facts: ModelFacts, *, memory: int, resource: str
) -> Resources:
    cpu = spec.pod_template.resources.cpu
    return Resources(
        cpu_millis=at_least(cpu, 1000) if cpu else cpu_request(Footprint(config, workload(spec, facts), ())),
        memory_bytes=memory,
        ephemeral_bytes=ephemeral_storage(facts, fetches=spec.model.hugging_face is not None),
        pods=1,
        extended={resource: config.tensor_parallel} if resource else {},
    )


def _draft(option: Option) -> PlanStatus:
    config, load, stages = option.config, option.footprint.workload, option.footprint.stages
    draft = PlanStatus(
        revision=option.request.revision,
        id="",
        summary="",
        device=config.device,
        product=option.product,
        resource_name=option.resource,
        allocation=option.gpu.allocation.value if option.gpu else "",
        weights=option.formats.weights,
        compute=None if option.formats.weights.computes else option.formats.compute,
        checkpoint_format=option.formats.checkpoint,
        kv_cache=option.formats.kv_cache,
        tensor_parallel=config.tensor_parallel,
        pipeline_parallel=config.pipeline_parallel,
        stage_layers=[stage.layers[1] - stage.layers[0] for stage in stages],
        max_batched_tokens=load.max_batched_tokens,
        max_context_tokens=load.max_context_tokens,
        kv_cache_tokens=pool_tokens(
            context=load.max_context_tokens,
            sequences=load.max_sequences,
            kv_tokens=load.kv_tokens,
            block=BLOCK_TOKENS,
        ),
        kv_cache_bytes=max(stage.bytes.kv_cache for stage in stages),
        memory=[
            StageMemory(stage=stage.stage, predicted=stage.bytes, line=option.line, total=stage.total)
            for stage in stages
        ],
        host_memory_bytes=option.host_memory,
        placements=[],
        predicted=option.forecast.predicted if option.forecast else None,
    )
    return draft.model_copy(update={"id": _plan_id(draft)})


def _plan_id(draft: PlanStatus) -> str:
    """A hash over everything that a worker runs by, placements left out: adding a replica must not rename,
    and so restart, the replicas that serve."""
    told = draft.model_dump_json(exclude={"id", "summary", "placements", "predicted", "rejected"})
    return hashlib.sha256(told.encode()).hexdigest()[:8]
