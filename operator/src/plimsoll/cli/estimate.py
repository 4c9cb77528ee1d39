"""`plimsoll estimate`: the bytes of a model on each GPU, with the arithmetic, before anything starts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from plimsoll.cli.estimate_table import print_table
from plimsoll.cli.inspect import SourceArgument
from plimsoll.cli.output import BadInputError, Format, NotPossibleError, OutputOption, gib, parse_bytes, write
from plimsoll.inventory import products
from plimsoll.model.facts import ModelFacts, Role
from plimsoll.model.read import read_facts
from plimsoll.sizing import kv_cache as kv
from plimsoll.sizing.footprint import Configuration, Footprint, Workload, footprint
from plimsoll.sizing.runtime import MIB, line
from plimsoll.sizing.schemes import BLOCKS, FP8, INT4, INT8, stored_format
from plimsoll.sizing.weights import beside_quantized, loaded_bytes, native_precision
from plimsoll.sources import open_source
from plimsoll_worker.launch import CAPABILITIES, ENGINE_VERSION, GGUF, Device, Precision

API_VERSION = "plimsoll.dev/v1alpha1"
DEFAULT_CONTEXT_TOKENS = 8192
DEFAULT_SEQUENCES = 8
DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_HEADROOM_PERCENT = 3
SCHEMES = {scheme.name: scheme for scheme in (FP8, INT8, INT4)}


class Weights(StrEnum):
    """What `--weights` takes."""

    NATIVE = "Native"
    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    FP8 = "FP8"
    INT8 = "INT8"
    INT4 = "INT4"


class Cache(StrEnum):
    """What `--kv-cache` takes."""

    NATIVE = "Native"
    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    FP8 = "FP8"


def command(
    source: SourceArgument,
    weights: Annotated[
        Weights,
        typer.Option(help="Precision of the weights; Native: exact, a quantized checkpoint as stored."),
    ] = Weights.NATIVE,
    kv_cache: Annotated[
        Cache, typer.Option(help="Precision of the KV cache; Native: what the engine computes in.")
    ] = Cache.NATIVE,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share each layer.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="Stages of layers.")] = 1,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Longest sequence, tokens; default: min(model's limit, 8192).")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences in flight.")] = DEFAULT_SEQUENCES,
    batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of one forward pass; default: 2048.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU product (H100, L4 …) or its memory (24Gi, bytes): does it fit?")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compute the bytes a model takes on each GPU, by category. Exit 3 when it does not fit --gpu."""
    card = None if gpu is None else card_bytes(gpu)
    facts = read_facts(open_source(source))
    context = max_context or min(facts.max_position, DEFAULT_CONTEXT_TOKENS)
    sized = footprint(
        facts,
        configured(facts, weights, kv_cache, tensor=tensor_parallel, pipeline=pipeline_parallel),
        Workload(
            max_context_tokens=context,
            max_sequences=sequences,
            max_batched_tokens=batched_tokens or min(DEFAULT_BATCHED_TOKENS, context * sequences),
        ),
    )
    notes = warnings(facts, sized)
    if output is Format.TABLE:
        print_table(facts, sized, notes, card=card, headroom_percent=DEFAULT_HEADROOM_PERCENT)
    else:
        write(document(facts, sized, notes), output)
    if card is not None:
        _require_fit(sized, card)


def configured(
    facts: ModelFacts, weights: Weights, kv_cache: Cache, *, tensor: int, pipeline: int
) -> Configuration:
    """How the model is to run. Beside quantized matrices the rest is kept in 16 bit, BF16 unless the
    checkpoint is FP16."""
    native, scheme = native_precision(facts), SCHEMES.get(weights.value)
    stored = stored_format(facts) if weights is Weights.NATIVE else ""
    if scheme is not None or stored == GGUF:
        precision = beside_quantized(native)
    else:
        precision = native if weights is Weights.NATIVE else Precision(weights.value)
    return Configuration(
        device=Device.GPU,
        weights=precision,
        kv_cache=precision if kv_cache is Cache.NATIVE else Precision(kv_cache.value),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        stored=bool(stored),
        scheme=scheme,
    )


def card_bytes(gpu: str) -> int:
    """Memory of a product by name, or the bytes that were written. Raises BadInputError."""
    if gpu[:1].isdigit():
        return parse_bytes(gpu, "--gpu")
    product = products.find(gpu)
    if product is None:
        raise BadInputError(
            f"--gpu: {gpu!r} is no product that is known; write its memory instead, as in 24Gi"
        )
    return product.memory_mib[0] * MIB


def document(facts: ModelFacts, sized: Footprint, notes: list[str]) -> dict[str, Any]:
    """The machine-readable answer. Every rank of a stage is listed; ranks of a stage hold the same."""
    configuration = sized.configuration
    return {
        "apiVersion": API_VERSION,
        "model": {
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "checkpointBytes": facts.checkpoint_bytes,
            "loadedBytes": loaded_bytes(facts, configuration.kept),
            "kvBytesPerToken": kv.bytes_per_token(facts, configuration.kv_cache),
            "kvBytesPerSequence": kv.bounded_bytes_per_sequence(facts, configuration.kv_cache),
            "maxPosition": facts.max_position,
        },
        "perGPU": [
            {
                "stage": stage.stage,
                "rank": rank,
                "bytes": stage.bytes.model_dump(by_alias=True),
                "total": stage.total,
            }
            for stage in sized.stages
            for rank in range(configuration.tensor_parallel)
        ],
        "warnings": notes,
    }


def warnings(facts: ModelFacts, sized: Footprint) -> list[str]:
    """What a reader would be surprised by later."""
    configuration, workload = sized.configuration, sized.workload
    native = native_precision(facts)
    notes = checkpoint_notes(facts, sized) + not_run_yet(sized)
    if configuration.scheme is not None:
        name, rest = configuration.scheme.name, configuration.weights
        notes.append(f"{name} rounds the matrices of the layers; everything else is kept in {rest}")
    elif configuration.weights.bytes < native.bytes and not configuration.stored:
        notes.append(f"{configuration.weights} rounds weights: the checkpoint is exact in {native} only")
    elif (
        configuration.weights is not native
        and native is not Precision.FP32
        and configuration.weights.bytes == 2
    ):
        notes.append(
            f"{configuration.weights} does not hold every {native} value: the checkpoint is exact in {native}"
        )
    if workload.max_context_tokens > facts.max_position:
        notes.append(
            f"context {workload.max_context_tokens} is longer than the {facts.max_position} tokens"
            " that the model was made for"
        )
    kv_heads = min((layer.kv_heads for layer in facts.layers if layer.kv_heads), default=0)
    if kv_heads and configuration.tensor_parallel > kv_heads:
        shared = (
            "one latent" if not min(layer.value_dim for layer in facts.layers) else f"{kv_heads} KV heads"
        )
        notes.append(
            f"{configuration.tensor_parallel} ranks share {shared}: each is held"
            f" {configuration.tensor_parallel // kv_heads} times"
        )
    if not configuration.bounded_windows and any(layer.window for layer in facts.layers):
        notes.append("this engine version keeps layers with a sliding window in full")
    return notes


def not_run_yet(sized: Footprint) -> list[str]:
    """What is sized here and not among the engine's capabilities."""
    configuration, weights = sized.configuration, CAPABILITIES.weights[Device.GPU]
    computed = [precision for precision in weights if precision.computes]
    caches, notes = (*computed, *CAPABILITIES.kv_cache.get(Device.GPU, ())), []
    for what, name, runs in (
        (
            "weights",
            configuration.scheme.name if configuration.scheme else configuration.weights.value,
            weights,
        ),
        ("a KV cache", configuration.kv_cache.value, caches),
    ):
        known = ", ".join(runs)
        if name not in runs:
            notes.append(f"engine {ENGINE_VERSION} does not run {what} in {name} yet, only in {known}")
    return notes


def checkpoint_notes(facts: ModelFacts, sized: Footprint) -> list[str]:
    """What differs between the files and what is loaded."""
    notes = []
    if sized.configuration.stored and facts.packed is not None:
        notes.append(
            f"{facts.quantization}: the engine keeps these matrices as {facts.packed.precision}, "
            "number by number"
        )
    elif sized.configuration.stored and not facts.quantization:
        notes.append(
            "the engine keeps the matrices of this GGUF file's layers, number by number; everything else, and"
            f" what is of other types than {', '.join(BLOCKS)}, in {sized.configuration.weights}"
        )
    elif sized.configuration.stored:
        notes.append(
            f"{facts.quantization}: weights are counted as stored, scales included; engine {ENGINE_VERSION}"
            " does not load this checkpoint"
        )
    outer = {group.role: 0 for group in facts.outer}
    for group in facts.outer:
        outer[group.role] += group.bytes
    if facts.tied and Role.HEAD in outer:
        notes.append("the files hold the tied head a second time; it is loaded once")
    if Role.VISION in outer:
        notes.append(f"{gib(outer[Role.VISION])} of the files are a vision tower; it is not loaded")
    if Role.MTP in outer:
        notes.append(f"{gib(outer[Role.MTP])} of the files predict further tokens (MTP); they are not loaded")
    if facts.architecture not in CAPABILITIES.architectures:
        notes.append(
            f"engine {ENGINE_VERSION} does not run {facts.architecture}; the bytes are those it takes"
        )
    return notes


def _require_fit(sized: Footprint, card: int) -> None:
    worst, limit = sized.worst, line(card, DEFAULT_HEADROOM_PERCENT)
    if worst.total > limit:
        raise NotPossibleError(
            f"does not fit: stage {worst.stage} needs {gib(worst.total)} a GPU, the line of {gib(card)} is at"
            f" {gib(limit)} ({DEFAULT_HEADROOM_PERCENT} % headroom); --tensor-parallel, --max-context and"
            " --sequences change it"
        )
