"""The closed loop on the control plane: a worker measures, a MemoryProfile is kept, the next plan is exact.
And whom the operator does not believe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client
from tests.cluster.faults.conftest import Scene, first_of
from tests.cluster.faults.workers import measuring
from tests.cluster.lifecycle.conftest import Namespace

from plimsoll.api.v1alpha1 import API_VERSION, GROUP, VERSION
from plimsoll.api.v1alpha1.profile import PROFILE_KIND, PROFILE_PLURAL

pytestmark = pytest.mark.cluster

MIB = 1 << 20
MEASURED = {
    "activations": 123 * MIB,
    "runtime": 777 * MIB,
    "fragmentation": 11 * MIB,
    "cuda_graphs": 22 * MIB,
}
WIRE = {"activations": "activations", "runtime": "runtime", "fragmentation": "fragmentation"} | {
    "cuda_graphs": "cudaGraphs"
}


def predicted(models: Namespace, name: str) -> dict[str, int]:
    """Bytes by category that the plan counts on."""
    found: dict[str, int] = models.status(name)["plans"][0]["memory"][0]["predicted"]
    return found


@pytest.fixture
def elsewhere(scene: Scene) -> Iterator[Scene]:
    """Another namespace."""
    name = f"{scene.models.name[:50]}-else"
    core = scene.models.core
    core.create_namespace({"metadata": {"name": name}})
    scene.wait(lambda: core.list_namespaced_service_account(name).items, "the namespace takes pods")
    found = Scene(scene.ground, Namespace(scene.ground.kube, name, scene.ground.wait_for))
    yield found
    core.delete_namespace(name)
    scene.wait(
        lambda: name not in {one.metadata.name for one in core.list_namespace().items},
        "the other namespace is gone",
    )


def test_what_a_worker_measured_is_what_the_next_plan_counts_on_in_its_namespace_alone(
    scene: Scene, elsewhere: Scene
) -> None:
    scene.ground.workers.answers[scene.models.name, "first"] = measuring(**MEASURED)
    scene.serve("first")
    scene.wait(scene.profiles, "a MemoryProfile is kept", lambda: scene.models.get("first"))
    [profile] = scene.profiles()
    scene.wait(lambda: scene.profiles()[0].get("status", {}).get("bytes"), "its bytes are written")
    [profile] = scene.profiles()
    measured = profile["status"]["bytes"]
    assert {name: measured[WIRE[name]] for name in MEASURED} == MEASURED
    assert profile["spec"]["fingerprint"]["product"] == "NVIDIA-L4"
    before = predicted(scene.models, "first")

    # What was written must have come back to the operator that plans the next one.
    scene.quiet()
    scene.serve("second")
    exact = {name: value for name, value in measured.items() if name != "unattributed"}
    assert predicted(scene.models, "second") == exact != before
    measured_too = lambda: scene.models.status("second").get("measured")  # noqa: E731
    [told] = scene.wait(measured_too, "its report is told", lambda: scene.models.get("second"))
    assert told["errorPermille"] is not None

    elsewhere.serve("third")
    assert predicted(elsewhere.models, "third") == before
    assert predicted(scene.models, "first") == before, "what runs is not planned anew"

    scene.ground.kill_operator()
    assert scene.operator.running
    scene.serve("fourth")
    assert predicted(scene.models, "fourth") == exact, "a restarted operator knows it too"


NONSENSE: dict[str, dict[str, Any]] = {
    "weights of nothing": {"weights": 1},
    "a runtime larger than any": {"runtime": 1 << 50},
}


@pytest.mark.parametrize("nonsense", first_of(NONSENSE))
def test_a_profile_that_contradicts_the_model_is_ignored_and_said_so(
    nonsense: dict[str, int], scene: Scene
) -> None:
    scene.serve("first")
    scene.wait(lambda: scene.profiles() and scene.profiles()[0].get("status"), "a MemoryProfile is kept")
    before = predicted(scene.models, "first")
    [profile] = scene.profiles()
    custom = client.CustomObjectsApi(scene.ground.kube)
    name = profile["metadata"]["name"]
    scene.models.delete("first")
    scene.wait(lambda: not scene.models.leftovers(), "nobody measures", scene.models.leftovers)
    status = profile["status"] | {"bytes": profile["status"]["bytes"] | nonsense}
    custom.patch_namespaced_custom_object_status(
        GROUP,
        VERSION,
        scene.models.name,
        PROFILE_PLURAL,
        name,
        {"status": status},
        _content_type="application/merge-patch+json",
    )
    scene.serve("second")
    assert predicted(scene.models, "second") == before
    scene.models.wait_events(name, "ProfileIgnored")


def test_a_profile_with_negative_bytes_or_without_sense_never_gets_in(scene: Scene) -> None:
    custom = client.CustomObjectsApi(scene.ground.kube)
    body = {
        "apiVersion": API_VERSION,
        "kind": PROFILE_KIND,
        "metadata": {"name": "odd"},
        "spec": {"fingerprint": {"modelRevision": "x"}},
    }
    with pytest.raises(client.ApiException) as refused:
        custom.create_namespaced_custom_object(GROUP, VERSION, scene.models.name, PROFILE_PLURAL, body)
    assert refused.value.status == 422
    scene.serve()
