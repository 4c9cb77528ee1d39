"""Models on a volume of the real node: missing, truncated, not there, too big."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dev.cluster.description import Cluster
from dev.demo.model_volume import claim, place_model, volume
from dev.hub.smollm2 import GGUF, smollm2_gguf
from tests.cluster.lifecycle.conftest import Namespace
from tests.cluster.lifecycle.operator_process import Operator

pytestmark = [pytest.mark.cluster, pytest.mark.node]

CLAIM = "weights"


def on_volume(path: str = GGUF, **more: Any) -> dict[str, Any]:
    source = {"persistentVolumeClaim": {"claimName": CLAIM, "path": path}}
    workload = {"maxContextTokens": 1024, "maxConcurrentSequences": 2}
    return {"model": source, "placement": {"device": "CPU"}, "workload": workload} | more


@pytest.fixture
def provide(cluster: Cluster, models: Namespace, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """`provide(folder)`: a claim whose volume is that folder of the real node."""
    assert cluster.node is not None
    node = cluster.node
    name = f"{models.name}-{CLAIM}"

    def create(folder: Path) -> None:
        models.core.create_persistent_volume(volume(name, folder, node))
        models.core.create_namespaced_persistent_volume_claim(models.name, claim(CLAIM, models.name, name))

    yield create
    models.core.delete_persistent_volume(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that every user may read, as on a volume; pytest's own are private."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.name.startswith("pytest"):
            parent.chmod(0o755)
    found = tmp_path / "volume"
    found.mkdir(mode=0o755)
    return found


def test_a_missing_claim_is_told_and_waited_for(
    models: Namespace,
    operator: Operator,
    provide: Callable[[Path], None],
    folder: Path,
    wait_for: Callable[..., Any],
) -> None:
    models.apply("small", on_volume())
    told = models.wait_condition("small", "ModelResolved", "False", "VolumeNotFound")
    assert CLAIM in told["message"]
    operator.wait_rounds()
    assert not models.leftovers()
    place_model(folder)
    provide(folder)
    models.wait_condition("small", "ModelResolved", "True")
    assert models.status("small")["model"]["parameters"] == 134_515_008


def test_a_truncated_file_is_told_by_name_and_leaves_no_pod(
    models: Namespace,
    operator: Operator,
    provide: Callable[[Path], None],
    folder: Path,
    wait_for: Callable[..., Any],
) -> None:
    (folder / GGUF).write_bytes(smollm2_gguf().read_bytes()[: 8 << 20])
    provide(folder)
    models.apply("small", on_volume())
    told = models.wait_condition("small", "ModelResolved", "False", "ModelFileTruncated")
    assert GGUF in told["message"]
    wait_for(lambda: not models.leftovers(), 30, "no pod is left behind", models.leftovers)
    assert models.condition("small", "Ready")["reason"] == "ModelFileTruncated"


def test_a_file_that_is_not_there_is_told_by_name(
    models: Namespace,
    operator: Operator,
    provide: Callable[[Path], None],
    folder: Path,
) -> None:
    provide(folder)
    models.apply("small", on_volume("nothing.gguf"))
    told = models.wait_condition("small", "ModelResolved", "False", "ModelNotFound")
    assert "nothing.gguf" in told["message"]


def test_nothing_holds_the_model_is_told_with_bytes(
    models: Namespace,
    operator: Operator,
    provide: Callable[[Path], None],
    folder: Path,
) -> None:
    place_model(folder)
    provide(folder)
    models.apply("big", on_volume(workload={"maxContextTokens": 8192, "maxConcurrentSequences": 1024}))
    told = models.wait_condition("big", "Planned", "False", "InsufficientMemory")
    assert "GiB" in told["message"]
    operator.wait_rounds()
    assert not models.pods()
