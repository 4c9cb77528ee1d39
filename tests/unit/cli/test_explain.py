"""`plimsoll explain`: what status tells, with formulas from the revision and the nodes as they are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.unit.cli.test_plan import ready
from tests.unit.planning.builders import L4, decide_one, gpu_node, llama, request, spec

from plimsoll.actuate.ownership import Owner
from plimsoll.actuate.revisions import wanted_revision
from plimsoll.cli import explain
from plimsoll.cli.main import main
from plimsoll.cli.manifests import Objects


class FakeCluster:
    """Answers as an API server that serves one deployment."""

    namespace = "default"

    def __init__(self, *, planned: bool = True, revision: bool = True) -> None:
        owner = Owner("default", "demo", "uid-a")
        made = wanted_revision(owner, spec(), llama(), (), "worker:1")
        found = decide_one([gpu_node("a")], request()).plan
        assert found is not None
        plan = found.model_copy(update={"revision": made.name})
        self._revision = made.to_object() if revision else None
        measured = {
            "stage": 0,
            "bytes": plan.memory[0].predicted.model_dump(by_alias=True) | {"unattributed": 1 << 20},
            "kvCacheTokens": 65536,
            "device": "GPU",
            "weights": "BF16",
            "tensorParallel": 1,
            "pipelineParallel": 1,
            "errorPermille": -12,
        }
        status = {"plans": [plan.to_dict()], "currentRevision": made.name, "measured": [measured]}
        self._obj: dict[str, Any] = {
            "apiVersion": "plimsoll.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": "demo", "namespace": "default", "uid": "uid-a"},
            "spec": spec().to_dict(),
            "status": status if planned else {},
        }

    def tell(self, status: dict[str, Any]) -> None:
        self._obj["status"] |= status

    def deployment(self, namespace: str, name: str) -> dict[str, Any]:
        assert (namespace, name) == ("default", "demo")
        return self._obj

    def revision(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self._revision

    def objects(self) -> Objects:
        objects = Objects()
        objects.add(ready("a"))
        return objects


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster, *more: str
) -> tuple[int, str]:
    monkeypatch.setattr(explain, "Cluster", lambda context: cluster)
    with pytest.raises(SystemExit) as ended:
        main(["explain", "demo", *more])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_it_tells_the_plan_its_terms_what_was_measured_and_the_nodes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out = run(capsys, monkeypatch, FakeCluster())
    assert code == 0
    assert "demo: BF16 TP1xPP1, 1 GPU on 1 node" in out
    assert "8 KV heads" in out
    assert "measured" in out
    assert "error" in out
    assert re.search(r"activations .* [+-]\d+ MiB", out)
    assert "predicted -1.2 % of measured" in out
    assert "P.......  NVIDIA-H100-80GB-HBM3 on a" in out


def test_without_the_revision_it_says_which_formulas_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out = run(capsys, monkeypatch, FakeCluster(revision=False))
    assert code == 0
    assert "formulas need ControllerRevision demo-" in out
    assert "8 KV heads" not in out


def test_json_is_the_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = run(capsys, monkeypatch, FakeCluster(), "-o", "json")
    assert code == 0
    assert json.loads(out)["plans"][0]["tensorParallel"] == 1


def test_without_a_plan_it_tells_the_nearest_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster(planned=False)
    rejection = decide_one([gpu_node("a", L4, 1)], request(facts=llama(70, layers=80))).rejection
    assert rejection is not None
    cluster.tell({"rejected": [option.to_dict() for option in rejection.rejected]})
    code, out = run(capsys, monkeypatch, cluster)
    assert code == 3
    assert "looked at and not taken:\n  BF16 TP1 on NVIDIA-L4: InsufficientMemory: needs" in out


def test_without_a_plan_it_exits_with_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, monkeypatch, FakeCluster(planned=False))[0] == 3
