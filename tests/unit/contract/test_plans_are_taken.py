"""What the planner may plan, the worker takes: every option for a dozen models, as the environment of its
pods, before the worker's own check."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.actuate.test_pods import DEFAULTS, OWNER, environment
from tests.unit.model.crafted import MemorySource
from tests.unit.model.published import config_of, rows
from tests.unit.planning.builders import H100, L4, gpu_node, node, request, snapshot
from tests.unit.worker.quant import packers
from tests.unit.worker.quant.gguf_files import written
from tests.unit.worker.quant.test_stored import written as packed_in
from tests.unit.worker.test_models import SMALL, configuration

from plimsoll.actuate.pods import worker_pod
from plimsoll.actuate.revisions import wanted_revision
from plimsoll.api.v1alpha1 import PlanPlacement
from plimsoll.model.facts import ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.planning.candidates import worker_requests
from plimsoll.planning.eligibility import Eligibility
from plimsoll.planning.options import Option
from plimsoll.planning.plan import world_of
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.sources import open_source
from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import EffectiveConfigMismatch, ModelUnsupported, WorkerError
from plimsoll_worker.launch import CAPABILITIES, Launch, LaunchError
from plimsoll_worker.loading.checkpoint import Checkpoint, open_checkpoint
from plimsoll_worker.loading.config_json import config_from_json
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.stored import staying
from plimsoll_worker.selfcheck import check_plan
from plimsoll_worker.settings import LoadFormat

MODELS = (
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-32B",
    "mistralai/Mistral-Small-24B-2501",
    "google/gemma-2-2b-it",
    "ibm-granite/granite-4.1-8b",
    "HuggingFaceTB/SmolLM2-135M",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-v0.1",
)
NODES = [
    *(gpu_node(f"h{index}", H100, 8) for index in range(2)),
    *(gpu_node(f"l{index}", L4, 4) for index in range(8)),
    *(node(f"c{index}", memory="48Gi") for index in range(4)),
]
CAPABILITY = {H100: (9, 0), L4: (8, 9), "": None}
QUANTIZATIONS: tuple[dict[str, str], ...] = (
    {},
    {"weights": "Auto", "floor": "INT4", "kvCache": "Auto"},
    {"weights": "FP8", "kvCache": "FP8"},
    {"weights": "INT8"},
    {"weights": "INT4"},
    {"weights": "FP32"},
)
CUTS: tuple[dict[str, int], ...] = (
    {},
    *({"tensor": tensor} for tensor in (1, 2, 4, 8)),
    *({"pipeline": stages} for stages in (2, 3, 8)),
    {"tensor": 2, "pipeline": 2},
)


def asked(quantizations: Sequence[dict[str, str]] = QUANTIZATIONS) -> list[dict[str, Any]]:
    """Specs that between them ask for everything that can be asked for."""
    on_gpu = itertools.product(quantizations, CUTS, ({"device": "GPU"},))
    on_cpu = itertools.product(quantizations, ({}, {"pipeline": 2}, {"pipeline": 5}), ({"device": "CPU"},))
    return [
        {"quantization": kept, "parallelism": cut, "placement": device}
        for kept, cut, device in (*on_gpu, *on_cpu)
    ]


def options(deployment: DeploymentRequest) -> list[Option]:
    """All that the planner looks at and the engine is said to run."""
    world = world_of(snapshot(NODES, deployment, capabilities=CAPABILITIES))
    admitted = world.admission.admitted(deployment, Eligibility(deployment))
    found = world.catalog.options(deployment, admitted)
    return [option for option in found if option.fits and not option.refusal]


def launches(option: Option) -> list[Launch]:
    """Of all stages of a replica, as their pods' environments say."""
    revision = wanted_revision(OWNER, option.request.spec, option.request.facts, (), "worker:1")
    plan = option.draft.model_copy(update={"revision": revision.name})
    requests = worker_requests(plan, revision.spec, revision.facts)
    gpus = option.config.tensor_parallel if option.gpu else 0
    return [
        Launch.from_env(
            environment(
                worker_pod(
                    revision,
                    plan,
                    PlanPlacement(replica=0, stage=stage, node="n", gpus=gpus),
                    0,
                    requests,
                    DEFAULTS,
                )
            )
        )
        for stage in range(option.config.pipeline_parallel)
    ]


def model(name: str) -> tuple[ModelFacts, ModelConfig]:
    """One config.json, as the operator reads it and as the worker does."""
    raw = config_of(rows()[name])
    facts = read_facts(MemorySource({"config.json": raw}, entry="config.json"))
    return facts, config_from_json(json.loads(raw))


@pytest.mark.parametrize("name", MODELS)
def test_every_option_of_a_model_is_taken_by_every_stage(name: str) -> None:
    facts, config = model(name)
    shapes = set()
    for fields in asked():
        for option in options(request(facts=facts, **fields)):
            shapes.add(option.name)
            found = launches(option)
            for launch in found:
                try:
                    check_plan(launch, config, option.product, capability=CAPABILITY[option.product])
                except WorkerError as error:
                    pytest.fail(f"{option.name}, stage {launch.stage}: {error}")
            ranges = [(launch.layers.first, launch.layers.last) for launch in found]
            assert ranges[0][0] == 0
            assert ranges[-1][1] == config.layer_count
            assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
            assert len({launch.plan_id for launch in found}) == 1
    assert any("PP2" in shape for shape in shapes), shapes
    assert any("on CPU" in shape for shape in shapes), shapes


def weighed(checkpoint: Checkpoint, launch: Launch) -> int:
    """Bytes of weights that the launch's first rank keeps."""
    model = load_model(
        checkpoint,
        device=torch.device("cpu"),
        precision=launch.weights.computed_in,
        matrices=launch.weights.name,
        as_stored=launch.weights.checkpoint is not None,
        position=Position.of(launch),
    )
    return model.weight_bytes


def shapes_taken(
    facts: ModelFacts, checkpoint: Checkpoint, quantizations: Sequence[dict[str, str]]
) -> set[str]:
    """Of all options. Every stage takes its launch, and its first rank keeps the bytes that were planned."""
    loaded: dict[tuple[str, str, int], int] = {}
    for fields in asked(quantizations):
        for option in options(request(facts=facts, **fields)):
            for launch in launches(option):
                stored = staying(checkpoint.stored, as_stored=launch.weights.checkpoint is not None)
                check_plan(
                    launch,
                    checkpoint.config,
                    option.product,
                    checkpoint=stored.format if stored else "",
                    capability=CAPABILITY[option.product],
                )
                key = (option.shape, launch.weights.computed_in, launch.stage)
                if key not in loaded:
                    loaded[key] = weighed(checkpoint, launch)
                assert loaded[key] == launch.predicted.weights, option.name
    return {shape for shape, _, _ in loaded}


def test_every_option_of_a_gguf_file_is_taken_and_weighs_what_was_planned(tmp_path: Path) -> None:
    kinds = {"": "Q4_K", "attn_v": "Q6_K", "ffn_down": "Q6_K", "attn_output": "Q8_0", "ffn_up": "Q5_K"}
    path = written(tmp_path / "m.gguf", kinds)
    facts, checkpoint = read_facts(open_source(str(path))), open_checkpoint(path)
    shapes = shapes_taken(facts, checkpoint, ({}, {"weights": "INT8"}, {"weights": "INT4"}))
    assert shapes >= {"gguf TP1", "gguf TP2", "gguf TP8", "gguf TP2xPP2", "INT8 TP1", "INT4 TP2", "FP32 PP2"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 512}),
        ("Qwen3Moe", {"num_experts": 3, "moe_intermediate_size": 256, "mlp_only_layers": [1]}),
    ],
    ids=["mixtral", "qwen3_moe, a layer dense"],
)
def test_every_option_of_a_mixture_is_taken_and_weighs_what_was_planned(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 128}
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "dtype": "bfloat16"}
    configuration(kind)(**{**SMALL, **shape, **heads, **changes}).save_pretrained(tmp_path)
    facts = read_facts(open_source(str(tmp_path / "config.json")))
    checkpoint = open_checkpoint(tmp_path, LoadFormat.DUMMY)
    kept = ({}, {"weights": "FP8"}, {"weights": "INT8"}, {"weights": "INT4"})
    shapes = shapes_taken(facts, checkpoint, kept)
    assert shapes >= {"INT4 TP1", "INT4 TP2", "INT8 TP4", "FP8 TP2", "FP8 TP2xPP2", "BF16 TP4", "INT8 PP2"}
    # 64 columns of an expert on each of four ranks would be half a group.
    assert ("INT4 TP4" in shapes) == (kind == "Mixtral")


@pytest.mark.parametrize(
    ("packer", "most"),
    [
        (packers.gptq(64, symmetric=False), 4),
        (packers.float_quantized("channel"), 4),
        (packers.fp8_blocks(), 2),
    ],
    ids=["gptq", "FP8 a row", "FP8 in blocks"],
)
def test_every_option_of_a_packed_mixture_is_taken_and_weighs_what_was_planned(
    packer: packers.Packer, most: int, tmp_path: Path
) -> None:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 256, "head_dim": 64}
    packed_in(packer, tmp_path, "Qwen3Moe", **experts)
    facts, checkpoint = read_facts(open_source(str(tmp_path))), open_checkpoint(tmp_path)
    shapes = shapes_taken(facts, checkpoint, ({},))
    method = packer.config["quant_method"]
    ranks = [tensor for tensor in (1, 2, 4) if f"{method} TP{tensor}" in shapes]
    assert ranks == [tensor for tensor in (1, 2, 4) if tensor <= most]
    assert f"{method} TP2xPP2" in shapes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipelineParallel": 99}, "rendezvous.stages has 2 addresses, expected one for each of"),
        ({"rendezvous": None}, "rendezvous is missing: pipelineParallel is 2"),
        ({"stage": 2}, "stage is 2, expected less than pipelineParallel 2"),
    ],
)
def test_a_launch_whose_stages_contradict_each_other_is_refused_by_its_field(
    changes: dict[str, Any], words: str
) -> None:
    launch = json.loads(two_stages()[0].to_json()) | changes
    with pytest.raises(LaunchError, match=words):
        Launch.from_env({"PLIMSOLL_LAUNCH": json.dumps(launch)})


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        (0, {"layers": {"first": 1, "last": 20}}, "layers of the launch is 1-20, expected a part of 0-30"),
        (0, {"layers": {"first": 0, "last": 30}}, "layers of the launch is 0-30, expected a part of 0-30"),
        (1, {"layers": {"first": 20, "last": 29}}, "layers of the launch is 20-29, expected a part of 0-30"),
        (1, {"tensorParallel": 9}, "tensorParallel of the launch is 9, expected at most 8"),
        (1, {"weights": {"name": "BF16", "bits": 16}}, "weights.name of the launch is BF16"),
    ],
)
def test_a_launch_that_cannot_be_run_is_refused_by_its_field(
    stage: int, changes: dict[str, Any], words: str
) -> None:
    _, config = model("HuggingFaceTB/SmolLM2-135M")
    launch = json.loads(two_stages()[stage].to_json()) | changes
    with pytest.raises((EffectiveConfigMismatch, ModelUnsupported), match=words):
        check_plan(Launch.from_env({"PLIMSOLL_LAUNCH": json.dumps(launch)}), config, "")


def test_more_stages_than_the_engine_runs_are_refused() -> None:
    most = CAPABILITIES.max_pipeline_parallel
    _, config = model("HuggingFaceTB/SmolLM2-135M")
    launch = two_stages()[0].model_copy(update={"pipeline_parallel": most + 1})
    with pytest.raises(EffectiveConfigMismatch, match=f"pipelineParallel of the launch is {most + 1}"):
        check_plan(launch, config, "")


def two_stages() -> list[Launch]:
    facts, _ = model("HuggingFaceTB/SmolLM2-135M")
    fields = {"parallelism": {"pipeline": 2}, "placement": {"device": "CPU"}}
    [option] = options(request(facts=facts, **fields))
    return launches(option)
