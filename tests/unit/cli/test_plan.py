"""`plimsoll plan` offline: the operator's decision as JSON and as a page, and bad input told by file and
field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.cli.test_inventory import node, pod
from tests.unit.planning.builders import ONE_CARD, llama

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.cli.main import main
from plimsoll_worker.launch import CAPABILITIES

READY = [{"type": "Ready", "status": "True"}]


class Files:
    """A folder with a deployment, nodes and a model's facts, to be changed by a test before it runs the
    verb."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.spec: dict[str, Any] = {"model": {"huggingFace": {"repo": "org/model"}}}
        self.meta: dict[str, Any] = {"name": "demo"}
        self.objects: list[dict[str, Any]] = [ready("a"), pod("x", "a", 3)]
        self.facts = llama(8).model_dump_json(by_alias=True)

    def write(self, name: str, content: object) -> str:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    def run(self, *more: str) -> tuple[int, str, str]:
        body = {
            "apiVersion": "plimsoll.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": self.meta,
            "spec": self.spec,
        }
        files = [
            "-f",
            self.write("deployment.yaml", body),
            "-f",
            self.write("cluster.yaml", {"kind": "List", "items": self.objects}),
        ]
        facts = ["--facts", self.write("facts.json", self.facts)] if self.facts else []
        with pytest.raises(SystemExit) as ended:
            main(["plan", *files, *facts, *more])
        captured = self._capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    def json(self, *more: str) -> tuple[int, dict[str, Any]]:
        code, out, err = self.run("-o", "json", *more)
        assert out, err
        return code, json.loads(out)


def ready(name: str) -> dict[str, Any]:
    found = node(name)
    allocatable = {
        "cpu": "96",
        "memory": "1Ti",
        "ephemeral-storage": "2Ti",
        "pods": "110",
        "nvidia.com/gpu": "8",
    }
    found["status"] = {"allocatable": allocatable, "conditions": READY}
    return found


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


def test_json_is_an_entry_of_status_plans_with_conditions(files: Files) -> None:
    code, answer = files.json()
    assert code == 0
    assert answer.pop("apiVersion") == "plimsoll.dev/v1alpha1"
    told = {entry["type"]: (entry["status"], entry["reason"]) for entry in answer.pop("conditions")}
    assert told == {"ModelResolved": ("True", "HeadersRead"), "Planned": ("True", "Planned")}
    parsed = PlanStatus.model_validate(answer)
    assert parsed.to_dict() == answer
    assert [place.node for place in parsed.placements] == ["a"]


def test_what_does_not_fit_exits_with_3_and_the_reason(files: Files) -> None:
    files.objects = [ready("a"), pod("x", "a", 8)]
    code, answer = files.json()
    assert code == 3
    planned = answer["conditions"][-1]
    assert (planned["type"], planned["status"], planned["reason"]) == ("Planned", "False", "InsufficientGPUs")
    assert answer["rejected"][0]["reason"] == "InsufficientGPUs"


def test_a_plan_for_some_replicas_only_exits_with_3_as_well(files: Files) -> None:
    files.spec["replicas"] = 6
    code, answer = files.json()
    assert code == 3
    assert len(answer["placements"]) == 5
    assert answer["conditions"][-1]["reason"] == "InsufficientGPUs"


def test_the_page_shows_reasons_terms_and_a_picture_of_the_nodes(files: Files) -> None:
    code, out, _ = files.run()
    assert code == 0
    assert "demo: BF16 TP1xPP1, 1 GPU on 1 node (NVIDIA-H100-80GB-HBM3)" in out
    assert "8 sequences of 8192" in out
    assert "replica 0 stage 0: a, 1 GPU" in out
    assert "32 KV heads" not in out
    assert "8 KV heads" in out
    assert "8.00 GiB" in out
    assert "###P....  NVIDIA-H100-80GB-HBM3 on a" in out


def test_the_page_of_a_rejection_shows_bytes_and_what_would_change_it(files: Files) -> None:
    files.facts = llama(8).model_dump_json(by_alias=True)
    files.spec["workload"] = {"maxContextTokens": 131072}
    code, out, _ = files.run("--capabilities", files.write("capabilities.json", ONE_CARD.to_json()))
    assert code == 3
    assert "no plan" in out
    assert "TP1 needs " in out
    assert "workload.maxContextTokens: " in out


def test_the_same_question_has_the_same_answer(files: Files) -> None:
    def answer() -> dict[str, Any]:
        _, found = files.json()
        for entry in found["conditions"]:
            del entry["lastTransitionTime"]
        return found

    assert answer() == answer()


def test_pods_of_the_deployment_itself_make_room(files: Files) -> None:
    files.meta["uid"] = "mine"
    own = pod("demo-r0", "a", 8)
    own["metadata"]["ownerReferences"] = [{"uid": "mine", "controller": True}]
    files.objects = [ready("a"), own]
    assert files.json()[0] == 0


def test_another_engine_can_be_planned_for(files: Files) -> None:
    files.facts = llama(70, layers=80).model_dump_json(by_alias=True)
    code, answer = files.json()
    assert (code, answer["tensorParallel"]) == (0, 4)
    code, answer = files.json("--capabilities", files.write("capabilities.json", ONE_CARD.to_json()))
    assert (code, answer["conditions"][-1]["reason"]) == (3, "EngineUnsupported")


class TestProfiles:
    """What workers measured, given as `kubectl get memoryprofiles -A -o yaml` prints it."""

    def measured(self, files: Files, *, more: int = 0, **changes: object) -> str:
        _, answer = files.json()
        [memory] = answer["memory"]
        ledger = {**memory["predicted"], "unattributed": 0}
        ledger["runtime"] += more
        fingerprint = {
            "modelRevision": llama(8).revision,
            "architecture": "llama",
            "engineVersion": CAPABILITIES.engine_version,
            "image": "registry.example.com/worker:1",
            "device": "GPU",
            "product": answer["product"],
            "weights": "BF16",
            "compute": "BF16",
            "kvCache": "BF16",
            "tensorParallel": 1,
            "pipelineParallel": 1,
            "stage": 0,
            "maxContextTokens": 8192,
            "maxBatchedTokens": 2048,
            "maxConcurrentSequences": 8,
            **changes,
        }
        profile = {
            "kind": "MemoryProfile",
            "metadata": {"name": "p", "namespace": "elsewhere"},
            "spec": {"fingerprint": fingerprint},
            "status": {"bytes": ledger, "kvCacheTokens": 65536, "observations": 2},
        }
        return files.write("profiles.yaml", {"kind": "List", "items": [profile]})

    def test_the_plan_has_the_bytes_that_were_measured(self, files: Files) -> None:
        plain = files.json()[1]["memory"][0]["total"]
        code, answer = files.json("--profiles", self.measured(files, more=1 << 30))
        assert (code, answer["memory"][0]["total"]) == (0, plain + (1 << 30))

    def test_another_image_says_nothing_where_the_spec_names_one(self, files: Files) -> None:
        plain = files.json()[1]["memory"][0]["total"]
        path = self.measured(files, more=1 << 30)
        files.spec["engine"] = {"image": "registry.example.com/worker:2"}
        assert files.json("--profiles", path)[1]["memory"][0]["total"] == plain

    def test_a_broken_profile_is_told_with_its_field(self, files: Files) -> None:
        code, _, err = files.run("--profiles", self.measured(files, tensorParallel=0))
        assert code == 2
        assert "p: spec.fingerprint.tensorParallel" in " ".join(err.split())

    def test_a_file_without_profiles_is_told_as_such(self, files: Files) -> None:
        code, _, err = files.run("--profiles", files.write("none.yaml", {"kind": "List", "items": []}))
        assert (code, "no objects of kind MemoryProfile" in " ".join(err.split())) == (2, True)


def test_packed_facts_are_read_too(files: Files) -> None:
    files.facts = llama(8).pack()
    assert files.json()[0] == 0


def test_a_claim_and_its_volume_decide_where(files: Files) -> None:
    files.spec["model"] = {"persistentVolumeClaim": {"claimName": "models"}}
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": "default"},
        "spec": {"volumeName": "pv"},
        "status": {"phase": "Bound"},
    }
    field = {"key": "metadata.name", "operator": "In", "values": ["b"]}
    volume = {
        "kind": "PersistentVolume",
        "metadata": {"name": "pv"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": [field]}]}},
        },
    }
    files.objects = [ready("a"), ready("b"), claim, volume]
    _, answer = files.json()
    assert [place["node"] for place in answer["placements"]] == ["b"]


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an unknown field": ({"replica": 2}, ["deployment.yaml", "spec.replica: no such field"]),
    "an unknown field deep down": (
        {"placement": {"accelerators": {"product": ["L4"]}}},
        ["spec.placement.accelerators.product: no such field"],
    ),
    "a bad quantity": (
        {"placement": {"accelerators": {"minMemory": "40GB"}}},
        ["spec.placement.accelerators.minMemory"],
    ),
    "too many replicas": ({"replicas": 100}, ["spec.replicas"]),
    "no source": ({"model": {}}, ["spec.model", "exactly one source"]),
}


@pytest.mark.parametrize(("change", "told"), BAD.values(), ids=BAD.keys())
def test_a_bad_deployment_names_file_and_field(files: Files, change: dict[str, Any], told: list[str]) -> None:
    files.spec |= change
    code, _, err = files.run()
    assert code == 2
    for text in told:
        assert text in err


def test_a_claim_needs_facts_or_a_copy_of_the_model(files: Files) -> None:
    files.spec["model"] = {"persistentVolumeClaim": {"claimName": "models"}}
    files.facts = ""
    code, _, err = files.run()
    assert code == 2
    assert "--model" in err
    assert "--facts" in err


def test_facts_that_are_none_are_told(files: Files) -> None:
    files.facts = '{"architecture": "llama"}'
    code, _, err = files.run()
    assert code == 2
    assert "facts.json: format: Field required" in err


def test_one_deployment_is_asked_for(files: Files) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "-f", files.write("cluster.yaml", {"kind": "List", "items": files.objects})])
    assert ended.value.code == 2


def test_pods_without_nodes_are_refused(files: Files) -> None:
    files.objects = [pod("x", "a", 1)]
    code, _, err = files.run()
    assert code == 2
    assert "pods without nodes" in err
