"""The configurations that could serve a deployment: precisions × tensor parallel × pipeline parallel × token
budget × kind of device, with their bytes.

Options of one node are computed also where the engine cannot run them yet or no GPU holds them: the answer to
"why not" is an option with a reason. Options of several stages are offered where the engine runs them, and
come last unless prices say otherwise: a stage boundary on a network is slower than one in a node.

What nobody would take is left out while it is made: of a kind of GPU, a cut after one that fits already, and
a lower precision that saves no GPU. So a plan that may round costs little more than one that may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, MultiNode, PlanStatus
from plimsoll.inventory.gpu_class import GPUClass, Sharing
from plimsoll.inventory.products import names
from plimsoll.planning.admission import Admitted
from plimsoll.planning.exclusions import is_excluded
from plimsoll.planning.forecast import Forecaster, has_targets
from plimsoll.planning.formats import Formats, formats, formats_of
from plimsoll.planning.options import (
    Option,
    Sized,
    Sizer,
    planned_configuration,
    planned_workload,
    worker_requests,
    workload,
    workloads,
)
from plimsoll.planning.profiles import Profiles, StoredProfile
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import Pool
from plimsoll.planning.support import unsupported
from plimsoll.sizing.configuration import Configuration, Workload
from plimsoll.sizing.host import host_memory
from plimsoll.sizing.runtime import line
from plimsoll_worker.launch import Capabilities, Device

__all__ = ["TENSOR_PARALLEL", "Catalog", "worker_requests", "workload"]

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Sizes that fill nodes of 1, 2, 4 and 8 GPUs without a rest; a divisibility chain, so packing stays
exact."""

UNBOUNDED = 1 << 30
"""GPUs, where nothing bounds their number."""


@dataclass(frozen=True)
class _Kind:
    """All admitted GPUs of one product and resource."""

    pools: tuple[Pool, ...]
    memories: tuple[int, ...]
    """Bytes of one GPU: GPUs of one product differ by driver. Ascending."""

    def sizes(self, spec: LLMDeploymentSpec) -> tuple[int, ...]:
        """How many of these GPUs may work on one stage. MIG slices reach no other slice: neither NVLink nor
        peer access crosses their border."""
        asked = (spec.parallelism.tensor,) if spec.parallelism.tensor else TENSOR_PARALLEL
        return tuple(size for size in asked if size == 1) if self.sliced else asked

    @property
    def sliced(self) -> bool:
        return self.gpu.sharing is Sharing.MIG

    @cached_property
    def gpu(self) -> GPUClass:
        """The pool of the first node by name speaks for all."""
        found = min(self.pools, key=lambda pool: pool.nodes[0].name).gpu
        assert found is not None, "pools of a kind of GPU have one"
        return found

    def with_gpus(self, count: int) -> _Kind | None:
        """On nodes that have so many GPUs, taken or not; None where there are none."""
        wide = tuple(pool for pool in self.pools if pool.gpu and pool.gpu.total >= count)
        if len(wide) == len(self.pools):
            return self
        return _Kind(wide, _memories(wide)) if wide else None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a deployment asks for, read once."""

    request: DeploymentRequest
    admitted: Admitted
    formats: tuple[Formats, ...]
    loads: tuple[Workload, ...]
    """The usual token budget first."""

    @property
    def by_time(self) -> bool:
        """Whether options are compared by predicted times, so that more GPUs may be better."""
        return self.request.spec.workload.objective.predicted

    def line(self, memory: int) -> int:
        return line(memory, self.request.spec.placement.memory_headroom_percent)


class Catalog:
    """All options of a plan. `prices`: relative price of a GPU by (part of) its product's name; without
    prices, or for a product that has none, the fewest GPUs cost least."""

    def __init__(
        self,
        capabilities: Capabilities,
        prices: Mapping[str, int] | None = None,
        profiles: Iterable[StoredProfile] = (),
    ) -> None:
        self._capabilities = capabilities
        self._prices = dict(prices or {})
        self._priced: dict[str, int] = {}
        self._sizer = Sizer(Profiles(profiles, capabilities.engine_version))
        self._forecaster = Forecaster()
        self._listed: dict[tuple[object, ...], tuple[Option, ...]] = {}

    def options(self, request: DeploymentRequest, admitted: Admitted) -> tuple[Option, ...]:
        """All options worth looking at, the best by the spec's objective first, then by product. On CPU one
        for each precision, and one over several stages where no node holds that."""
        key = request.uid, request.spec.quantization
        if key not in self._listed:
            if request.spec.placement.device is Device.CPU:
                found = self._cpu_options(request, admitted)
            else:
                spec, facts = request.spec, request.facts
                asked = _Asked(request, admitted, formats(spec, facts), tuple(workloads(spec, facts)))
                found = [option for kind in _kinds(admitted) for option in self._gpu_options(asked, kind)]
                found.sort(key=lambda option: (option.cost, option.product, option.gpus))
            self._listed[key] = tuple(found)
        return self._listed[key]

    def option_in_force(self, request: DeploymentRequest, plan: PlanStatus, admitted: Admitted) -> Option:
        """The configuration of a plan in force, for more replicas of it."""
        load = planned_workload(plan, request.spec, request.facts)
        sized = self._sizer.sized(request, planned_configuration(plan), load, plan.product)
        assert sized is not None, "a plan in force cuts the model in a way that is possible"
        drawn = max(stage.line for stage in plan.memory)
        headroom = request.spec.placement.memory_headroom_percent
        alike = tuple(
            pool
            for pool in admitted.pools
            if pool.gpu is None
            or (
                (pool.gpu.product, pool.gpu.resource_name) == (plan.product, plan.resource_name)
                and pool.gpu.total >= plan.tensor_parallel
                and line(pool.gpu.memory_bytes, headroom) >= drawn
            )
        )
        return Option(
            request=request,
            formats=formats_of(plan),
            sized=sized,
            gpu=alike[0].gpu if alike else None,
            line=min(stage.line for stage in plan.memory),
            host_memory=plan.host_memory_bytes,
            admitted=admitted.only(alike),
            refusal="",
            one_node=plan.pipeline_parallel > 1 and not self._spans_nodes(request),
            in_force=plan.model_copy(update={"placements": [], "rejected": []}),
        )

    def _cpu_options(self, request: DeploymentRequest, admitted: Admitted) -> list[Option]:
        """Without GPUs: everything in the node's memory, which is chosen so that it holds the model."""
        largest = max(
            (node.allocatable.memory_bytes for pool in admitted.pools for node in pool.nodes), default=0
        )
        fixed = request.spec.parallelism.pipeline
        found = []
        for kept in formats(request.spec, request.facts):
            whole = self._cpu_option(request, admitted, kept, fixed or 1)
            if whole is None:
                continue
            found.append(whole)
            if fixed or whole.host_memory <= largest:
                continue
            most = min(self._capabilities.max_pipeline_parallel, request.facts.layer_count)
            cuts = (self._cpu_option(request, admitted, kept, stages) for stages in range(2, most + 1))
            found += islice((cut for cut in cuts if cut and cut.host_memory <= largest), 1)
        return found

    def _cpu_option(
        self, request: DeploymentRequest, admitted: Admitted, kept: Formats, stages: int
    ) -> Option | None:
        """None where the model has fewer layers than stages."""
        headroom = request.spec.placement.memory_headroom_percent
        config = kept.configuration(Device.CPU, 1, stages)
        sized = self._sizer.sized(request, config, workload(request.spec, request.facts), "")
        if sized is None:
            return None
        host = host_memory(request.facts, sized.footprint, headroom_percent=headroom)
        return Option(
            request=request,
            formats=kept,
            sized=sized,
            gpu=None,
            line=line(host, headroom),
            host_memory=host,
            admitted=admitted,
            refusal=unsupported(self._capabilities, request.facts, kept, config, None),
            one_node=stages > 1 and not self._spans_nodes(request),
            excluded=is_excluded(request, config, "", sized.footprint.workload),
        )

    def _gpu_options(self, asked: _Asked, kind: _Kind) -> Iterator[Option]:
        """Of one kind of GPU, without those to which another is to be preferred wherever it has room."""
        better: list[Option] = []
        for loss, kept in enumerate(asked.formats):
            for option in self._cuts(asked, kind, kept, loss, self._enough(asked, kind, better)):
                if not any(_dominates(other, option) for other in better):
                    yield option
                    if option.runs:
                        better.append(option)

    def _enough(self, asked: _Asked, kind: _Kind, better: Sequence[Option]) -> int:
        """GPUs of an option to which none with as many, and more loss, is to be preferred."""
        if asked.by_time:
            return UNBOUNDED
        lowest = asked.line(kind.memories[0])
        whole = (one for one in better if one.config.pipeline_parallel == 1 and one.line == lowest)
        return min((one.gpus for one in whole), default=UNBOUNDED)

    def _cuts(self, asked: _Asked, kind: _Kind, kept: Formats, loss: int, enough: int) -> Iterator[Option]:
        """The cuts that divide the model and take fewer GPUs than `enough`, up to the first that runs on all
        GPUs of the kind: more ranks of the same GPU would only take more. Where times are compared, all
        sizes."""
        spec = asked.request.spec
        least_line, most_line = asked.line(kind.memories[0]), asked.line(kind.memories[-1])
        fixed, fewest = spec.parallelism.pipeline, enough
        for tensor in kind.sizes(spec):
            if tensor >= enough:
                return
            sized = self._sized(asked, kept.configuration(Device.GPU, tensor, fixed or 1), kind)
            whole = self._option(asked, kind, kept, loss, sized)
            if sized is None or whole is None:
                continue
            yield whole
            settled = whole.keeps_targets and not whole.excluded and not asked.by_time
            if sized.needed <= least_line and settled:
                return
            if fixed or kind.sliced or whole.refusal or sized.needed <= most_line:
                continue
            staged = self._staged(asked, kind, kept, sized, most=(fewest - 1) // tensor)
            if cut := self._option(asked, kind, kept, loss, staged):
                yield cut
                fewest = cut.gpus

    def _staged(self, asked: _Asked, kind: _Kind, kept: Formats, whole: Sized, most: int) -> Sized | None:
        """The cut into the fewest stages, up to `most`, that fits, where the engine runs stages."""
        tensor, most_line = whole.footprint.configuration.tensor_parallel, asked.line(kind.memories[-1])
        stage, layers = whole.footprint.worst.bytes, asked.request.facts.layer_count
        for pipeline in range(2, min(self._capabilities.max_pipeline_parallel, layers, most) + 1):
            if (stage.weights + stage.kv_cache) // pipeline + stage.runtime > most_line:
                continue
            cut = self._sized(asked, kept.configuration(Device.GPU, tensor, pipeline), kind)
            if cut is not None and cut.needed <= most_line:
                return cut
        return None

    def _sized(self, asked: _Asked, config: Configuration, kind: _Kind) -> Sized | None:
        """With the first token budget that fits and did not run out of memory, else with the usual one."""
        most, request, product = asked.line(kind.memories[-1]), asked.request, kind.gpu.product
        usual = self._sizer.sized(request, config, asked.loads[0], product)
        # A smaller budget saves activations and their fragmentation, nothing else.
        if usual is None or usual.needed - 2 * usual.activations > most:
            return usual
        for load in self._loads(asked, config, kind.gpu):
            sized = self._sizer.sized(request, config, load, product)
            excluded = is_excluded(request, config, product, load)
            if sized is not None and sized.needed <= most and not excluded:
                return sized
        return usual

    def _loads(self, asked: _Asked, config: Configuration, gpu: GPUClass) -> Iterable[Workload]:
        spec, facts = asked.request.spec, asked.request.facts
        if has_targets(spec):
            return self._forecaster.loads(spec, facts, config, gpu, asked.loads[0])
        return asked.loads

    def _option(
        self, asked: _Asked, kind: _Kind, kept: Formats, loss: int, sized: Sized | None
    ) -> Option | None:
        """None where the model does not divide so, and where no node has enough GPUs."""
        if sized is None:
            return None
        config = sized.footprint.configuration
        one_node = config.pipeline_parallel > 1 and not self._spans_nodes(asked.request)
        gpus = config.tensor_parallel * config.pipeline_parallel
        wide = kind.with_gpus(gpus if one_node else config.tensor_parallel)
        if wide is None:
            return None
        gpu, memories = wide.gpu, wide.memories
        # The smallest memory that holds the footprint admits the most nodes.
        memory = next((m for m in memories if asked.line(m) >= sized.needed), memories[-1])
        return Option(
            request=asked.request,
            formats=kept,
            sized=sized,
            gpu=gpu,
            line=asked.line(memory),
            host_memory=host_memory(asked.request.facts, sized.footprint),
            admitted=asked.admitted.only(
                [pool for pool in wide.pools if pool.gpu and pool.gpu.memory_bytes >= memory]
            ),
            refusal=unsupported(
                self._capabilities, asked.request.facts, kept, config, gpu.compute_capability
            ),
            loss=loss,
            price=gpus * self._price(gpu.product),
            memory=memory,
            forecaster=self._forecaster,
            one_node=one_node,
            excluded=is_excluded(asked.request, config, gpu.product, sized.footprint.workload),
        )

    def _spans_nodes(self, request: DeploymentRequest) -> bool:
        """Whether the stages of a replica may be on different nodes."""
        return self._capabilities.multi_node and request.spec.parallelism.multi_node is MultiNode.IF_NEEDED

    def _price(self, product: str) -> int:
        if product not in self._priced:
            found = (price for wish, price in self._prices.items() if names(wish, product))
            self._priced[product] = next(found, 0)
        return self._priced[product]


def _dominates(better: Option, option: Option) -> bool:
    """Whether `better` costs no more and has room wherever `option` has; both of one kind of GPU."""
    return (
        better.cost <= option.cost
        and better.gpus <= option.gpus
        and better.gpus_together <= option.gpus_together
        and better.line <= option.line
        and better.host_memory <= option.host_memory
    )


def _kinds(admitted: Admitted) -> Iterator[_Kind]:
    by_product: dict[tuple[str, str], list[Pool]] = {}
    for pool in admitted.pools:
        assert pool.gpu is not None, "deployments on GPU are admitted to pools of GPUs"
        by_product.setdefault((pool.gpu.product, pool.gpu.resource_name), []).append(pool)
    for pools in by_product.values():
        yield _Kind(tuple(pools), _memories(pools))


def _memories(pools: Sequence[Pool]) -> tuple[int, ...]:
    return tuple(sorted({pool.gpu.memory_bytes for pool in pools if pool.gpu}))
