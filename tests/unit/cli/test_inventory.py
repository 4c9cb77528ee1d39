"""`plimsoll inventory` on saved objects: the documented JSON, and a table that says why a GPU cannot be
used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.cli.main import main

H100 = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.count": "8",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
}


def node(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": H100 | {k.replace("_", "."): v for k, v in labels.items()}},
        "status": {"allocatable": {"nvidia.com/gpu": "8", "cpu": "96"}},
    }


def pod(name: str, on: str, gpus: int, phase: str = "Running") -> dict[str, Any]:
    resources = {"requests": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": on, "containers": [{"name": "main", "resources": resources}]},
        "status": {"phase": phase},
    }


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def saved(path: Path, *objects: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    return str(path)


def test_json_has_one_entry_for_each_class_of_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = node("b")
    shared["metadata"]["labels"]["nvidia.com/gpu.sharing-strategy"] = "mps"
    nodes = saved(tmp_path / "nodes.yaml", shared, node("a"))
    pods = saved(tmp_path / "pods.yaml", pod("x", "a", 3), pod("done", "a", 4, "Succeeded"))
    code, out, _ = run(capsys, "inventory", "-f", nodes, "-f", pods, "-o", "json")
    first, second = json.loads(out)
    assert code == 0
    assert first == {
        "node": "a",
        "vendor": "NVIDIA",
        "product": "NVIDIA-H100-80GB-HBM3",
        "memoryBytes": 81559 << 20,
        "computeCapability": "9.0",
        "total": 8,
        "free": 5,
        "sharing": "None",
        "usable": True,
        "reason": "",
    }
    assert (second["node"], second["sharing"], second["usable"]) == ("b", "MPS", False)
    assert "nvidia.com/gpu.sharing-strategy" in second["reason"]


def test_the_table_says_why_a_gpu_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = node("odd")
    odd["metadata"]["labels"]["nvidia.com/gpu.memory"] = "80"
    code, out, _ = run(capsys, "inventory", "-f", saved(tmp_path / "nodes.yaml", node("a"), odd))
    assert code == 0
    assert "8 of 8" in out
    assert "odd: label nvidia.com/gpu.memory=80 contradicts NVIDIA-H100-80GB-HBM3" in out


def test_typed_lists_and_many_documents_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixed.yaml"
    bare = {key: value for key, value in node("a").items() if key != "kind"}
    path.write_text(yaml.safe_dump_all([{"kind": "NodeList", "items": [bare]}, pod("x", "a", 2)]))
    code, out, _ = run(capsys, "inventory", "-f", str(path), "-o", "yaml")
    assert code == 0
    assert yaml.safe_load(out)[0]["free"] == 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not YAML or JSON"),
        ("just words", "expected Kubernetes objects with a field kind"),
        ("{kind: Pod, metadata: {name: x}}", "no objects of kind Node"),
        ("{kind: Node, metadata: {}}", "Node without metadata.name"),
    ],
)
def test_a_bad_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    code, _, err = run(capsys, "inventory", "-f", str(path))
    assert code == 2
    assert str(path) in err
    assert told in err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "inventory", "-f", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "none.yaml: No such file" in err


def test_a_request_that_cannot_be_read_names_the_pod(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = pod("x", "a", 1)
    broken["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "lots"
    code, _, err = run(capsys, "inventory", "-f", saved(tmp_path / "all.yaml", node("a"), broken))
    assert code == 2
    assert "pod default/x: container main: request for cpu: 'lots' is not a quantity" in err


def test_without_files_and_without_a_cluster_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    code, _, err = run(capsys, "inventory")
    assert code == 2
    assert "give saved objects with -f" in err


def test_devices_of_dra_are_listed_with_who_holds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = {"type": {"string": "gpu"}, "productName": {"string": "NVIDIA L4"}}
    capacity = {"memory": {"value": "23034Mi"}}
    devices = [{"name": f"gpu-{n}", "attributes": attributes, "capacity": capacity} for n in range(2)]
    pool = {"name": "a", "generation": 1, "resourceSliceCount": 1}
    slices = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": "a-gpus"},
        "spec": {"driver": "gpu.nvidia.com", "nodeName": "a", "pool": pool, "devices": devices},
    }
    result = {"driver": "gpu.nvidia.com", "pool": "a", "device": "gpu-1"}
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "default"},
        "status": {"allocation": {"devices": {"results": [result]}}},
    }
    bare = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "status": {}}
    path = saved(tmp_path / "all.yaml", bare, slices, claim)
    code, out, _ = run(capsys, "inventory", "-f", path, "-o", "json")
    assert code == 0
    assert json.loads(out) == [
        {
            "node": "a",
            "vendor": "NVIDIA",
            "product": "NVIDIA-L4",
            "memoryBytes": 23034 << 20,
            "computeCapability": None,
            "total": 2,
            "free": 1,
            "sharing": "None",
            "usable": True,
            "reason": "",
        }
    ]
    _, table, _ = run(capsys, "inventory", "-f", path)
    assert "1 of 2" in table
    assert "DRA" in table


def test_a_slice_is_a_row_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = node("cut")
    cut["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] = "7"
    _, out, _ = run(capsys, "inventory", "-f", saved(tmp_path / "nodes.yaml", cut), "-o", "json")
    assert [
        (entry["product"], entry["sharing"], entry["usable"], entry["free"]) for entry in json.loads(out)
    ] == [
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "MIG", True, 7),
        ("NVIDIA-H100-80GB-HBM3", "None", True, 8),
    ]
