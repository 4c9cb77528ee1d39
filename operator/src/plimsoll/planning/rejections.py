"""Why a deployment, or one of its options, has no place: bytes needed, bytes there, and what would change
it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from plimsoll.api.v1alpha1 import MultiNode, RejectedOption, WeightsPrecision
from plimsoll.inventory.capacity import Shortage
from plimsoll.model.quantization.config import KEPT
from plimsoll.planning import words
from plimsoll.planning.admission import Admitted, Refused
from plimsoll.planning.eligibility import NO_MATCHING_NODES, VOLUME_UNAVAILABLE
from plimsoll.planning.exclusions import MOST_CONFIGURATIONS, RAN_OUT_OF_MEMORY
from plimsoll.planning.forecast import missed_words
from plimsoll.planning.formats import formats
from plimsoll.planning.options import Option, workload
from plimsoll.planning.placement import best, holds_one, most_stages, ranked
from plimsoll.planning.remedies import remedies
from plimsoll.planning.room import Room
from plimsoll.planning.snapshot import DeploymentRequest, Rejection
from plimsoll.planning.supply import NodeGPUs, Supply
from plimsoll.planning.topology import domains, key_of, unlabelled
from plimsoll.sizing.footprint import Footprint, footprint
from plimsoll.sizing.host import host_memory
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll_worker.launch import Capabilities, Device

MAX_REJECTED = 8
NAMES_TOLD = 3
INSUFFICIENT_MEMORY, INSUFFICIENT_GPUS = "InsufficientMemory", "InsufficientGPUs"
INSUFFICIENT_RESOURCES, ENGINE_UNSUPPORTED = "InsufficientResources", "EngineUnsupported"
CONTEXT_TOO_LONG, LEFT_TO_OTHERS = "ContextTooLong", "LeftToOthers"
NOT_DIVISIBLE, TARGET_MISSED, SPEED_UNKNOWN = "NotDivisible", "TargetMissed", "SpeedUnknown"
SHARE_WORDS = (("weights", "weights"), ("kv_cache", "KV cache"), ("activations", "activations"))


def not_possible(request: DeploymentRequest, capabilities: Capabilities) -> Rejection | None:
    """What is wrong whatever the cluster holds: architecture, context, volume."""
    spec, facts = request.spec, request.facts
    if facts.architecture not in capabilities.architectures:
        known = ", ".join(capabilities.architectures)
        return Rejection(
            ENGINE_UNSUPPORTED,
            f"engine {capabilities.engine_version} runs the architectures {known}; "
            f"this model is {facts.architecture}",
        )
    if facts.quantization not in ("", *capabilities.checkpoints.get(spec.placement.device, ())):
        return Rejection(
            ENGINE_UNSUPPORTED,
            f"engine {capabilities.engine_version} loads no {facts.quantization} checkpoint: "
            "name the unquantized one in spec.model",
        )
    if facts.quantization in KEPT and facts.packed is None:
        return Rejection(
            ENGINE_UNSUPPORTED,
            f"engine {capabilities.engine_version} has no exact form for the matrices of this "
            f"{facts.quantization} checkpoint (docs/quantization.md lists those it has): "
            "name the unquantized one in spec.model",
        )
    asked_weights = spec.quantization.weights
    if facts.quantization and asked_weights not in (WeightsPrecision.AUTO, WeightsPrecision.NATIVE):
        return Rejection(
            ENGINE_UNSUPPORTED,
            f"spec.quantization.weights is {asked_weights}, and this checkpoint is quantized already "
            f"({facts.quantization}): write Native, or name the unquantized one in spec.model",
        )
    asked = spec.workload.max_context_tokens
    if asked is not None and asked > facts.max_position:
        return Rejection(
            CONTEXT_TOO_LONG,
            f"spec.workload.maxContextTokens is {asked}, the model was made for {facts.max_position} tokens: "
            f"write {facts.max_position} or less",
        )
    volume = request.volume
    if volume is not None and (volume.reason or not volume.bound):
        pending = f"PersistentVolumeClaim {volume.claim} is not bound to a volume"
        return Rejection(VOLUME_UNAVAILABLE, volume.reason or pending)
    return None


def no_nodes(supply: Supply, refused: Sequence[Refused], device: Device) -> Rejection:
    """No node may be used at all."""
    reason = NO_MATCHING_NODES
    if any(obstacle.reason == VOLUME_UNAVAILABLE for _, obstacle in refused):
        reason = VOLUME_UNAVAILABLE
    if refused:
        found = words.count(len({node.name for nodes, _ in refused for node in nodes}), "node")
        with_gpu = " with usable GPUs" if device is Device.GPU else ""
        told = f"none of {found}{with_gpu} can be used: {grouped(refused)}"
        if device is Device.GPU and supply.unusable:
            told += f". GPUs that are not usable at all: {_reasons(supply.unusable)}"
        return Rejection(reason, told)
    if device is Device.CPU:
        return Rejection(reason, "the cluster has no nodes")
    return Rejection(reason, _no_gpus(supply.unusable))


def _no_gpus(unusable: Sequence[NodeGPUs]) -> str:
    if not unusable:
        return (
            "no node offers a GPU: expected nodes with the resource nvidia.com/gpu and the labels "
            "nvidia.com/gpu.product and nvidia.com/gpu.memory, which GPU feature discovery writes "
            "(placement.device: CPU runs without)"
        )
    return f"no node offers a usable GPU. {_reasons(unusable)}"


def _reasons(unusable: Sequence[NodeGPUs]) -> str:
    reasons: dict[str, list[str]] = {}
    for entry in unusable:
        reasons.setdefault(entry.gpu.reason, []).append(entry.node.name)
    return "; ".join(f"{words.listed(nodes)}: {reason}" for reason, nodes in list(reasons.items())[:3])


def no_cut(request: DeploymentRequest, admitted: Admitted) -> Rejection:
    """The cut that spec.parallelism asks for divides nothing, or no node is wide enough for it."""
    asked = request.spec.parallelism
    tensor, pipeline = asked.tensor or 1, asked.pipeline or 1
    told = ""
    for kept in formats(request.spec, request.facts):
        config = kept.configuration(request.spec.placement.device, tensor, pipeline)
        try:
            footprint(request.facts, config, workload(request.spec, request.facts))
        except ParallelRefused as refused:
            told = told or f"spec.parallelism: {refused}"
    if told:
        return Rejection(NOT_DIVISIBLE, told)
    widest = max((pool.gpu.total for pool in admitted.pools if pool.gpu), default=0)
    together = words.count(tensor * pipeline if asked.multi_node is MultiNode.NEVER else tensor, "GPU")
    return Rejection(
        INSUFFICIENT_GPUS,
        f"spec.parallelism asks for {together} of one kind on one node, the widest usable node has {widest}",
    )


def grouped(refused: Iterable[Refused]) -> str:
    """Obstacles with the nodes they are on: "a, b are ..." once, not a line a node."""
    by_words: dict[str, set[str]] = {}
    for nodes, obstacle in refused:
        by_words.setdefault(obstacle.words, set()).update(node.name for node in nodes)
    ordered = sorted(by_words.items(), key=lambda item: (-len(item[1]), item[0]))
    return "; ".join(f"{words.listed(sorted(names))} {text}" for text, names in ordered[:4])


def shares(sized: Footprint, total: int | None = None) -> str:
    """weights 61.0 GiB, KV cache 8.0 GiB, activations 430 MiB, other 1.2 GiB. `total`: what they add up to
    when it is more than the device's bytes (on CPU: loading and headroom)."""
    worst = sized.worst.bytes
    named = [(label, getattr(worst, field)) for field, label in SHARE_WORDS]
    rest = (total or worst.total) - sum(amount for _, amount in named)
    return ", ".join(f"{label} {words.size(amount)}" for label, amount in [*named, ("other", rest)] if amount)


def why_not(option: Option, room: Room) -> RejectedOption | None:
    """Why the option has no place now, or None when a node would take one replica of it."""
    if not option.fits:
        return _rejected(option, INSUFFICIENT_MEMORY, _over_the_line(option))
    if option.refusal:
        return _rejected(option, ENGINE_UNSUPPORTED, _would_fit(option))
    if option.excluded:
        return _rejected(option, RAN_OUT_OF_MEMORY, _tried(option))
    if not option.keeps_targets:
        return _misses(option)
    if holds_one(option, room):
        return None
    return _no_room_together(option, room) if best(option, room) else _no_room(option, room)


def _tried(option: Option) -> str:
    load = option.footprint.workload
    known = option.request.excluded_configurations
    what = (
        f"{option.shape} with {load.max_batched_tokens} tokens a pass ran out of memory before"
        if len(known) < MOST_CONFIGURATIONS
        else f"{len(known)} configurations ran out of memory, no other one is tried"
    )
    return (
        f"{what}, see status.exclusions; a smaller workload, a higher placement.memoryHeadroomPercent or "
        "other GPUs would be another configuration"
    )


def _misses(option: Option) -> RejectedOption:
    spec, load = option.request.spec, option.footprint.workload
    if option.forecast is None:
        told = f"workload.targets cannot be held against {option.product}: its speed is not known"
        return _rejected(option, SPEED_UNKNOWN, told)
    return _rejected(option, TARGET_MISSED, missed_words(spec, option.forecast, load))


def _no_room_together(option: Option, room: Room) -> RejectedOption:
    """A stage would have room, the whole replica has none."""
    key, config = key_of(option), option.config
    found = domains(option) if key else {"": option.admitted}
    outside = unlabelled(option) if key else []
    without = f"; {words.listed(outside)} without the label {key} (placement.topologyKey)" if outside else ""
    if not found:
        return _rejected(
            option, NO_MATCHING_NODES, f"its stages must share a domain, and there is none{without}"
        )
    there = {value: most_stages(option, room, admitted) for value, admitted in found.items()}
    value = max(there, key=lambda value: there[value])
    where = f"no {key} has room for all stages: {value} has it" if key else f"{option.name} has room"
    stages = (
        f"{words.count(config.pipeline_parallel, 'stage')} of {words.count(config.tensor_parallel, 'GPU')}"
    )
    return _rejected(option, INSUFFICIENT_GPUS, f"{where} for {there[value]} of {stages}{without}")


def _no_room(option: Option, room: Room) -> RejectedOption:
    # Nodes whose GPUs are taken speak last: where others have them free, what those lack is the reason.
    names = list(ranked(option, room))
    if option.resource and not names:
        return _rejected(option, INSUFFICIENT_GPUS, _taken(option, room))
    if not option.resource and not names:
        return _rejected(option, INSUFFICIENT_MEMORY, _most_free(option, room))
    lacking = ((name, room.lacks(name, option.requests_together)) for name in names)
    name, lacks = min(lacking, key=lambda pair: (len(pair[1]), _relative(pair[1]), pair[0]))
    told = "; ".join(words.shortage(lack) for lack in lacks)
    return _rejected(option, INSUFFICIENT_RESOURCES, f"{name} comes nearest and lacks {told}")


def left_to_others(option: Option) -> RejectedOption:
    """It has room and is cheaper, and other new deployments have no other way that costs as little."""
    told = "has room, but is left to other new deployments: together they cost less so, or more of them fit"
    return _rejected(option, LEFT_TO_OTHERS, told)


def _rejected(option: Option, reason: str, message: str) -> RejectedOption:
    return RejectedOption(option=option.name, reason=reason, message=message)


def _relative(lacks: Sequence[Shortage]) -> float:
    return sum((lack.needed - lack.available) / lack.needed for lack in lacks)


def _over_the_line(option: Option) -> str:
    needed, drawn = words.sizes(option.needed, option.line)
    return f"needs {needed} a GPU ({shares(option.footprint)}), {option.product} has a line of {drawn}"


def _would_fit(option: Option) -> str:
    if option.gpu is None:
        return option.refusal
    needed, drawn = words.sizes(option.needed, option.line)
    gpus = f"{option.gpus} {option.product}"
    if option.config.pipeline_parallel > 1:
        gpus += f", {option.config.tensor_parallel} for each of {option.config.pipeline_parallel} stages"
    elif option.gpus > 1:
        gpus += " of one node"
    return f"{option.shape} would fit on {gpus} ({needed} a GPU, line {drawn}), but {option.refusal}"


def _taken(option: Option, room: Room) -> str:
    admitted, together = option.admitted, option.gpus_together
    if admitted.admits is None:
        nodes = sum(len(pool.nodes) for pool in admitted.pools)
        total = sum(len(pool.nodes) * pool.gpu.total for pool in admitted.pools if pool.gpu)
        free = sum(room.shelf(pool).free for pool in admitted.pools)
    else:
        kinds = [(node.name, pool.gpu.total) for pool in admitted.pools if pool.gpu for node in pool.nodes]
        used = [(name, gpus) for name, gpus in kinds if admitted.admits(name)]
        nodes, total = len(used), sum(gpus for _, gpus in used)
        free = sum(max(0, room.free(name).extended.get(option.resource, 0)) for name, _ in used)
    where = words.listed(list(islice(admitted.names(), NAMES_TOLD)), NAMES_TOLD, nodes)
    if free == 0:
        return f"{option.name} fits, but all {words.count(total, 'GPU')} on {where} are taken"
    return (
        f"{option.name} fits and needs {words.count(together, 'free GPU')} on one node, but none has them: "
        f"{free} of {total} are free on {where}"
    )


def _most_free(option: Option, room: Room) -> str:
    name = _roomiest(option, room)
    there = room.free(name).memory_bytes if name else 0
    needed, found = words.sizes(option.requests.memory_bytes, max(0, there))
    return (
        f"needs {needed} of memory on one node ({shares(option.footprint, option.requests.memory_bytes)}), "
        f"the most any node has free is {found} ({name})"
    )


def _roomiest(option: Option, room: Room) -> str:
    return max(option.admitted.names(), key=lambda name: (room.free(name).memory_bytes, name), default="")


def headline(
    request: DeploymentRequest, options: Sequence[Option], failures: Sequence[RejectedOption], room: Room
) -> tuple[str, str]:
    """(reason, message) for a deployment of which no option has a place.

    What is nearest to running decides: an option that would run if something were free, else one that is too
    slow, else one that ran out of memory, else one that a newer engine would run, else the bytes.
    """
    by_option = dict(zip((option.name for option in options), failures, strict=True))
    nearness = (
        (INSUFFICIENT_GPUS, INSUFFICIENT_RESOURCES, VOLUME_UNAVAILABLE),
        (TARGET_MISSED, SPEED_UNKNOWN),
        (RAN_OUT_OF_MEMORY,),
        (ENGINE_UNSUPPORTED,),
    )
    for reasons in nearness:
        for option in options:
            failure = by_option[option.name]
            if failure.reason in reasons:
                below = _runnable_below(request, options) if failure.reason == ENGINE_UNSUPPORTED else ""
                return failure.reason, failure.message + below
    runnable = [option for option in options if not option.refusal] or list(options)
    largest = max(runnable, key=lambda option: (option.line / option.needed, option.name))
    return INSUFFICIENT_MEMORY, _too_big(request, largest, options, room)


def _runnable_below(request: DeploymentRequest, options: Sequence[Option]) -> str:
    """Beside what a newer engine would run: why what this one runs does not fit, and what would."""
    runnable = [option for option in options if not option.refusal]
    if not runnable:
        return ""
    largest = max(runnable, key=lambda option: (option.line / option.needed, option.name))
    needed, drawn = words.sizes(largest.needed, largest.line)
    product, tensor = largest.product, largest.config.tensor_parallel
    found = remedies(request, largest, lambda sized: sized.worst.total <= largest.line)
    instead = f"; it would fit with {' or '.join(found)}" if found else ""
    return f"; TP{tensor} needs {needed} a GPU, {product} has a line of {drawn}{instead}"


def _even_wider(option: Option, options: Sequence[Option]) -> str:
    """The cut that comes nearest, when the engine could not run it anyway."""
    widest = min(options, key=lambda other: (other.needed / other.line, other.name))
    if widest.gpus <= option.gpus:
        return ""
    needed, drawn = words.sizes(widest.needed, widest.line)
    return f"; even over {widest.gpus} {widest.product} it needs {needed} a GPU of {drawn}"


def _too_big(request: DeploymentRequest, option: Option, options: Sequence[Option], room: Room) -> str:
    if option.gpu is None:
        message = _most_free(option, room)
        there = room.free(_roomiest(option, room)).memory_bytes
        headroom = request.spec.placement.memory_headroom_percent
        found = remedies(
            request,
            option,
            lambda sized: host_memory(request.facts, sized, headroom_percent=headroom) <= there,
        )
    else:
        needed, drawn = words.sizes(option.needed, option.line)
        node = next(option.admitted.names())
        message = (
            f"needs {needed} a GPU ({shares(option.footprint)}), the largest usable GPU, "
            f"{option.product} on {node}, has a line of {drawn}"
        )
        message += _even_wider(option, options)
        found = remedies(request, option, lambda sized: sized.worst.total <= option.line)
    if found:
        return f"{message}; would fit with {' or '.join(found)}"
    return f"{message}; no change of workload makes it fit"


def nearest(
    options: Sequence[Option], describe: Callable[[Option], RejectedOption | None]
) -> list[RejectedOption]:
    """The rejected options a reader cares about first: those that fit in bytes, then by how little is
    missing."""
    ordered = sorted(options, key=lambda one: (max(1.0, one.needed / one.line), one.gpus, one.name))
    return list(islice(filter(None, map(describe, ordered)), MAX_REJECTED))
