"""The configurations that could serve a deployment: precision × tensor parallel × pipeline parallel × kind of
device, with their bytes.

Options of one node are computed also where the engine cannot run them yet or no GPU holds them: the answer to
"why not" is an option with a reason. Options over several nodes are offered where the engine runs them, and
come last unless prices say otherwise: a stage boundary on a network is slower than one in a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus, WeightsPrecision
from plimsoll.inventory.gpu_class import Sharing
from plimsoll.inventory.products import names
from plimsoll.model.facts import ModelFacts
from plimsoll.planning.admission import Admitted
from plimsoll.planning.options import (
    Option,
    Sized,
    Sizer,
    planned_configuration,
    shape,
    worker_requests,
    workload,
)
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import Pool
from plimsoll.sizing.footprint import Configuration
from plimsoll.sizing.host import host_memory
from plimsoll.sizing.runtime import line
from plimsoll.sizing.weights import native_precision
from plimsoll_worker.launch import Capabilities, Device, Precision

__all__ = ["TENSOR_PARALLEL", "Catalog", "configuration", "precision", "shape", "worker_requests", "workload"]

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Sizes that fill nodes of 1, 2, 4 and 8 GPUs without a rest; a divisibility chain, so packing stays
exact."""
SIZE_CLASS_BYTES = 8 << 30
"""GPUs are of one size when they round to the same multiple: an H100 has 79.6 GiB, an A100 80.0."""
BF16_CAPABILITY = (8, 0)
"""Tensor cores compute BF16 from compute capability 8.0 on."""
MIB = 1 << 20


def precision(spec: LLMDeploymentSpec, facts: ModelFacts) -> Precision:
    if spec.quantization.weights is WeightsPrecision.NATIVE:
        return native_precision(facts, spec.placement.device)
    return Precision(spec.quantization.weights.value)


def configuration(device: Device, weights: Precision, tensor: int, pipeline: int = 1) -> Configuration:
    """The KV cache has the precision that the engine computes in."""
    return Configuration(
        device=device,
        weights=weights,
        kv_cache=weights,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """All admitted GPUs of one product and resource."""

    pools: tuple[Pool, ...]
    memories: tuple[int, ...]
    """Bytes of one GPU: GPUs of one product differ by driver. Ascending."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many of these GPUs may work on one stage. MIG slices reach no other slice: neither NVLink nor
        peer access crosses their border."""
        return TENSOR_PARALLEL[:1] if self.sliced else TENSOR_PARALLEL

    @property
    def sliced(self) -> bool:
        gpu = self.pools[0].gpu
        return gpu is not None and gpu.sharing is Sharing.MIG

    @property
    def first(self) -> Pool:
        """The pool of the first node by name speaks for all."""
        return min(self.pools, key=lambda pool: pool.nodes[0].name)


class Catalog:
    """All options of a plan. `prices`: relative price of a GPU by (part of) its product's name; without
    prices, or for a product that has none, the fewest GPUs cost least."""

    def __init__(self, capabilities: Capabilities, prices: Mapping[str, int] | None = None) -> None:
        self._capabilities = capabilities
        self._prices = dict(prices or {})
        self._sizer = Sizer()
        self._listed: dict[str, tuple[Option, ...]] = {}

    def cpu_option(self, request: DeploymentRequest, admitted: Admitted) -> Option:
        """The one option without GPUs: everything in the node's memory."""
        config = configuration(Device.CPU, precision(request.spec, request.facts), 1)
        sized = self._sized(request, config)
        assert sized is not None, "a model that is not cut can be cut"
        headroom = request.spec.placement.memory_headroom_percent
        host = host_memory(request.facts, sized.footprint, headroom_percent=headroom)
        refusal = _refusal(self._capabilities, config, None)
        return Option(request, sized, None, line(host, headroom), host, admitted, refusal)

    def gpu_options(self, request: DeploymentRequest, admitted: Admitted) -> tuple[Option, ...]:
        """For each kind of GPU the cuts that divide the model, up to the first that fits all its GPUs: more
        ranks of the same GPU would only take more. Cheapest first, then by product."""
        if request.uid not in self._listed:
            found = [option for kind in _kinds(admitted) for option in self._options(request, kind, admitted)]
            found.sort(key=lambda option: (option.cost, option.product, option.gpus))
            self._listed[request.uid] = tuple(found)
        return self._listed[request.uid]

    def option_in_force(self, request: DeploymentRequest, plan: PlanStatus, admitted: Admitted) -> Option:
        """The configuration of a plan in force, for more replicas of it."""
        sized = self._sized(request, planned_configuration(plan))
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
            sized=sized,
            gpu=alike[0].gpu if alike else None,
            line=min(stage.line for stage in plan.memory),
            host_memory=plan.host_memory_bytes,
            admitted=admitted.only(alike),
            refusal="",
            in_force=plan.model_copy(update={"placements": [], "rejected": []}),
        )

    def _options(self, request: DeploymentRequest, kind: _Kind, admitted: Admitted) -> Iterator[Option]:
        headroom = request.spec.placement.memory_headroom_percent
        least_line, most_line = line(kind.memories[0], headroom), line(kind.memories[-1], headroom)
        weights = precision(request.spec, request.facts)
        fewest = 0
        """GPUs of the smallest cut over several nodes so far."""
        for tensor in kind.sizes:
            wide = tuple(pool for pool in kind.pools if pool.gpu and pool.gpu.total >= tensor)
            whole = self._sized(request, configuration(Device.GPU, weights, tensor))
            if not wide or whole is None:
                continue
            yield self._gpu_option(request, whole, wide, admitted)
            if least_line >= whole.needed:
                return
            stages = most_line < whole.needed and not kind.sliced
            cut = self._staged(request, whole, most_line) if stages else None
            gpus = tensor * cut.footprint.configuration.pipeline_parallel if cut else 0
            if cut and (not fewest or gpus < fewest):
                yield self._gpu_option(request, cut, wide, admitted)
                fewest = gpus

    def _staged(self, request: DeploymentRequest, whole: Sized, most_line: int) -> Sized | None:
        """The cut into the fewest stages that fit, where the engine runs stages."""
        config, stage = whole.footprint.configuration, whole.footprint.worst.bytes
        for pipeline in range(
            2, min(self._capabilities.max_pipeline_parallel, request.facts.layer_count) + 1
        ):
            if (stage.weights + stage.kv_cache) // pipeline > most_line:
                continue
            cut = self._sized(request, replace(config, pipeline_parallel=pipeline))
            if cut is not None and cut.needed <= most_line:
                return cut
        return None

    def _sized(self, request: DeploymentRequest, config: Configuration) -> Sized | None:
        return self._sizer.sized(request.facts, config, workload(request.spec, request.facts))

    def _gpu_option(
        self, request: DeploymentRequest, sized: Sized, wide: tuple[Pool, ...], admitted: Admitted
    ) -> Option:
        headroom = request.spec.placement.memory_headroom_percent
        kind = _Kind(wide, _memories(wide))
        # The smallest memory that holds the footprint admits the most nodes.
        memory = next((m for m in kind.memories if line(m, headroom) >= sized.needed), kind.memories[-1])
        gpu = kind.first.gpu
        assert gpu is not None, "pools of a kind of GPU have one"
        config = sized.footprint.configuration
        return Option(
            request=request,
            sized=sized,
            gpu=gpu,
            line=line(memory, headroom),
            host_memory=host_memory(request.facts, sized.footprint),
            admitted=admitted.only([pool for pool in wide if pool.gpu and pool.gpu.memory_bytes >= memory]),
            refusal=_refusal(self._capabilities, config, gpu.compute_capability),
            cost=self._cost(config, gpu.product, memory, gpu.compute_capability or (0, 0)),
        )

    def _cost(self, config: Configuration, product: str, memory: int, capability: tuple[int, int]) -> int:
        """Of one replica: its price where prices are known, then whether it spans nodes, its GPUs, their size
        and their generation. A GPU with less memory, or of an older generation with about the same, costs
        less everywhere. One number, so that the costs of several replicas add up; each part is wide enough to
        hold its sum over a plan."""
        gpus = config.tensor_parallel * config.pipeline_parallel
        price = next((price for wish, price in self._prices.items() if names(wish, product)), 0)
        parts = (
            (price * gpus, 0),
            (config.pipeline_parallel - 1, 24),
            (gpus, 24),
            (gpus * round(memory / SIZE_CLASS_BYTES), 32),
            (gpus * (capability[0] * 10 + capability[1]), 32),
            (gpus * (memory // MIB), 48),
        )
        cost = 0
        for amount, bits in parts:
            cost = (cost << bits) + amount
        return cost


def _kinds(admitted: Admitted) -> Iterator[_Kind]:
    by_product: dict[tuple[str, str], list[Pool]] = {}
    for pool in admitted.pools:
        assert pool.gpu is not None, "deployments on GPU are admitted to pools of GPUs"
        by_product.setdefault((pool.gpu.product, pool.gpu.resource_name), []).append(pool)
    for pools in by_product.values():
        yield _Kind(tuple(pools), _memories(pools))


def _memories(pools: tuple[Pool, ...] | list[Pool]) -> tuple[int, ...]:
    return tuple(sorted({pool.gpu.memory_bytes for pool in pools if pool.gpu}))


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
