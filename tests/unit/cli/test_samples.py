"""Every sample as its reader meets it: planned without a cluster, on the nodes that `dev.cluster` imitates,
by an engine that runs everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.cluster.nodes import DEMO, requested
from tests.unit.planning.builders import llama
from tests.unit.sizing.shapes import facts_of

from plimsoll.cli.main import main
from plimsoll.model.facts import ModelFacts

SAMPLES = Path(__file__).parents[3] / "samples"
ENGINE = SAMPLES / "capabilities/full.json"
EXPECTED = {
    "llama-3.1-405b": "BF16 TP8xPP1, 8 GPUs on 1 node (NVIDIA-H200)",
    "llama-3.1-8b": "BF16 TP1xPP1, 1 GPU on 1 node (NVIDIA-A100-SXM4-80GB)",
    "llama-3.3-70b": "BF16 TP1xPP1, 1 GPU on 1 node (NVIDIA-H200)",
    "mistral-7b": "BF16 TP1xPP1, 1 GPU on 1 node (NVIDIA-L4)",
    "mistral-small-24b": "BF16 TP1xPP1, 2 GPUs on 1 node (NVIDIA-H100-80GB-HBM3)",
    "smollm2-hub": "FP32 TP1xPP1 on CPU of plain",
    "smollm2-fp8": "FP8 TP1xPP1 on CPU of plain",
    "smollm2-int4": "INT4 TP1xPP1 on CPU of plain",
    "smollm2-int8": "INT8 TP1xPP1 on CPU of plain",
    "smollm2-pvc": "FP32 TP1xPP1 on CPU of plain",
    "smollm2-two-stages": "FP32 TP1xPP2 on CPU of plain",
    "fewest-gpus": "BF16 TP1xPP1 with FP8 KV cache, 1 GPU on 1 node (NVIDIA-H200)",
    "quality": "BF16 TP2xPP1, 2 GPUs on 1 node (NVIDIA-H200)",
    "latency": "INT8 TP2xPP1 with FP8 KV cache, 2 GPUs on 1 node (NVIDIA-H200)",
    "throughput": "INT8 TP1xPP1 with FP8 KV cache, 1 GPU on 1 node (NVIDIA-H200)",
    "targets": "BF16 TP1xPP1, 1 GPU on 1 node (NVIDIA-H100-80GB-HBM3)",
}
"""The plan in one line."""


def facts(sample: str) -> ModelFacts:
    spec = yaml.safe_load((SAMPLES / f"{sample}.yaml").read_text())["spec"]["model"]
    repository = spec.get("huggingFace", {}).get("repo", "HuggingFaceTB/SmolLM2-135M-Instruct")
    if "405B" in repository:
        return llama(405, layers=126)
    if "mistral" in repository:
        return llama(24, layers=40) if "24B" in repository else llama(7.2)
    return facts_of(repository)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "nodes.yaml"
    plain = {
        "kind": "Node",
        "metadata": {"name": "plain"},
        "status": {
            "allocatable": {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "110"}
        },
    }
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    items = [{**node, "status": {**node["status"], **ready}} for node in [plain, *requested(str(DEMO))]]
    path.write_text(yaml.safe_dump({"kind": "List", "items": items}))
    return path


def test_every_sample_is_tried() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in SAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("sample", EXPECTED)
def test_a_sample_becomes_the_plan_that_it_is_there_to_show(
    sample: str, nodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "facts.json"
    model.write_text(facts(sample).model_dump_json(by_alias=True))
    files = ["-f", str(SAMPLES / f"{sample}.yaml"), "-f", str(nodes), "--facts", str(model)]
    with pytest.raises(SystemExit) as ended:
        main(["plan", *files, "--capabilities", str(ENGINE), "-o", "json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not ended.value.code, answer["conditions"]
    assert answer["summary"] == EXPECTED[sample]
