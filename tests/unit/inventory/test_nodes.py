"""API objects become views: what pods hold is what the scheduler counts, odd nodes never raise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.inventory.capacity import free_by_node, shortages
from plimsoll.inventory.nodes import node_view, pod_view, pods_using, volume_view
from plimsoll.inventory.quantity import QuantityError
from plimsoll.inventory.views import NodeView, PodView, Resources

GIB = 1 << 30


def container(cpu: str = "", memory: str = "", *, name: str = "main", **more: Any) -> dict[str, Any]:
    requests = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value}
    return {"name": name, "resources": {"requests": requests}, **more}


def view(spec: dict[str, Any], status: dict[str, Any] | None = None, **meta: Any) -> PodView:
    found = pod_view(
        {"metadata": {"name": "p", "namespace": "ns", **meta}, "spec": spec, "status": status or {}}
    )
    assert found is not None
    return found


SIDECAR = {"restartPolicy": "Always"}
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "containers add up": ({"containers": [container("1", "1Gi"), container("500m", "1Gi")]}, 1500, 2),
    "a large init container decides": (
        {"containers": [container("1", "1Gi")], "initContainers": [container("4", "8Gi")]},
        4000,
        8,
    ),
    "init containers run one after another": (
        {
            "containers": [container("1", "1Gi")],
            "initContainers": [container("2", "1Gi"), container("1", "3Gi")],
        },
        2000,
        3,
    ),
    "a sidecar runs beside the containers": (
        {"containers": [container("1", "1Gi")], "initContainers": [container("1", "2Gi", **SIDECAR)]},
        2000,
        3,
    ),
    "an init container runs beside the sidecars before it": (
        {
            "containers": [container("100m", "1Gi")],
            "initContainers": [container("1", "2Gi", **SIDECAR), container("3", "4Gi")],
        },
        4000,
        6,
    ),
    "a sidecar after an init container does not": (
        {
            "containers": [container("100m", "1Gi")],
            "initContainers": [container("3", "4Gi"), container("1", "2Gi", **SIDECAR)],
        },
        3000,
        4,
    ),
    "overhead is added": (
        {"containers": [container("1", "1Gi")], "overhead": {"cpu": "250m", "memory": "1Gi"}},
        1250,
        2,
    ),
    "the pod's own resources replace the sum": (
        {"containers": [container("1", "1Gi")], "resources": {"requests": {"cpu": "3"}}},
        3000,
        1,
    ),
    "a limit without a request is the request": (
        {"containers": [{"name": "m", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}]},
        2000,
        1,
    ),
}


@pytest.mark.parametrize(("spec", "millis", "gib"), CASES.values(), ids=CASES.keys())
def test_effective_requests_are_the_schedulers(spec: dict[str, Any], millis: int, gib: int) -> None:
    requests = view(spec).requests
    assert (requests.cpu_millis, requests.memory_bytes, requests.pods) == (millis, gib * GIB, 1)


def test_a_container_that_is_resized_holds_the_larger_amount() -> None:
    status = {"containerStatuses": [{"name": "main", "resources": {"requests": {"cpu": "4"}}}]}
    assert view({"containers": [container("1")]}, status).requests.cpu_millis == 4000


def test_extended_resources_of_limits_count() -> None:
    spec = {"containers": [{"name": "m", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}
    assert view(spec).requests.extended == {"nvidia.com/gpu": 2}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_holds_nothing(phase: str) -> None:
    assert pod_view({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": phase}}) is None


def test_a_request_that_cannot_be_read_names_pod_and_container() -> None:
    with pytest.raises(QuantityError, match=r"pod ns/p: container main: request for cpu: 'lots'"):
        view({"containers": [container("lots")]})


def test_a_pinned_pod_is_seen_before_it_is_bound() -> None:
    field = {"key": "metadata.name", "operator": "In", "values": ["node-a"]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    found = view({"containers": [], "affinity": affinity})
    assert (found.node, found.pinned_node) == ("", "node-a")


def test_owner_claims_and_termination_are_read() -> None:
    found = view(
        {"containers": [], "volumes": [{"persistentVolumeClaim": {"claimName": "models"}}, {"emptyDir": {}}]},
        ownerReferences=[{"uid": "other"}, {"uid": "mine", "controller": True}],
        deletionTimestamp="2026-01-01T00:00:00Z",
    )
    assert (found.owner_uid, found.claims, found.terminating) == ("mine", ("models",), True)
    assert pods_using([found], "ns", "models") == (found,)
    assert pods_using([found], "elsewhere", "models") == ()


def test_free_counts_bound_pinned_and_terminating_pods_of_everyone() -> None:
    node = node_view({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "8", "pods": "10"}}})
    pods = [
        PodView("a", "1", "1", "n", "", "Running", False, Resources(cpu_millis=1000, pods=1)),
        PodView("b", "2", "2", "n", "", "Running", True, Resources(cpu_millis=2000, pods=1)),
        PodView("c", "3", "3", "", "n", "Pending", False, Resources(cpu_millis=500, pods=1)),
        PodView("d", "4", "4", "", "", "Pending", False, Resources(cpu_millis=900, pods=1)),
        PodView("e", "5", "5", "gone", "", "Running", False, Resources(cpu_millis=900, pods=1)),
    ]
    free = free_by_node([node], pods)["n"]
    assert (free.cpu_millis, free.pods) == (4500, 7)


def test_a_resource_that_is_not_asked_for_is_not_compared() -> None:
    overcommitted = Resources(cpu_millis=-500, memory_bytes=GIB, pods=3)
    assert shortages(Resources(memory_bytes=GIB, pods=1), overcommitted) == ()
    assert [lack.resource for lack in shortages(Resources(cpu_millis=1), overcommitted)] == ["cpu"]


@pytest.mark.parametrize(
    ("obj", "told"),
    [
        ({}, ""),
        ({"metadata": {"name": "n"}, "status": None, "spec": None}, ""),
        ({"status": {"allocatable": {"nvidia.com/gpu": "-3"}}}, "-3"),
        ({"status": {"allocatable": {"memory": "much"}}}, "'much'"),
        ({"status": {"allocatable": {"cpu": None}}}, "None"),
        ({"metadata": {"labels": None, "annotations": {"x": 1}}}, ""),
    ],
)
def test_an_odd_node_never_raises_and_says_what_is_odd(obj: dict[str, Any], told: str) -> None:
    node = node_view(obj)
    assert min([*node.allocatable.extended.values(), node.allocatable.memory_bytes]) >= 0
    assert told in "".join(node.problems)
    assert bool(told) == bool(node.problems)


def ready_node(name: str, **labels: str) -> NodeView:
    return node_view({"metadata": {"name": name, "labels": labels}, "status": {}})


NODES = [ready_node("a", zone="1"), ready_node("b", zone="2"), ready_node("c")]


def bound_claim(**spec: Any) -> dict[str, Any]:
    return {"spec": {"volumeName": "pv", **spec}, "status": {"phase": "Bound"}}


def volume(expression: dict[str, Any] | None = None, *modes: str, **meta: Any) -> dict[str, Any]:
    terms = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}} if expression else {}
    return {"metadata": {"name": "pv", **meta}, "spec": {"accessModes": list(modes), "nodeAffinity": terms}}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ({"key": "zone", "operator": "In", "values": ["1"]}, {"a"}),
        ({"key": "zone", "operator": "NotIn", "values": ["1"]}, {"b", "c"}),
        ({"key": "zone", "operator": "Exists"}, {"a", "b"}),
        ({"key": "zone", "operator": "DoesNotExist"}, {"c"}),
        ({"key": "zone", "operator": "Gt", "values": ["1"]}, {"b"}),
        ({"key": "zone", "operator": "Lt", "values": ["1"]}, set()),
        ({"key": "zone", "operator": "Near", "values": ["1"]}, set()),
    ],
    ids=lambda value: value.get("operator") if isinstance(value, dict) else "",
)
def test_a_volume_is_reached_where_its_node_affinity_says(
    expression: dict[str, Any], names: set[str]
) -> None:
    found = volume_view(bound_claim(), volume(expression, "ReadWriteOnce"), "ns", "models", NODES)
    assert found.node_names == names
    assert (found.bound, found.reason) == (True, "")


def test_a_volume_without_affinity_is_reached_everywhere() -> None:
    assert volume_view(bound_claim(), volume(None, "ReadWriteMany"), "ns", "m", NODES).node_names is None


@pytest.mark.parametrize(
    ("claim", "pv", "told"),
    [
        (None, None, "PersistentVolumeClaim models does not exist in namespace ns"),
        ({"status": {"phase": "Lost"}, "spec": {"volumeName": "pv"}}, None, "has lost its volume pv"),
        (bound_claim(), None, "has lost its volume pv"),
        (bound_claim(), volume(None, deletionTimestamp="2026-01-01T00:00:00Z"), "is being deleted"),
    ],
)
def test_a_claim_that_cannot_be_used_says_why(claim: Any, pv: Any, told: str) -> None:
    assert told in volume_view(claim, pv, "ns", "models", NODES).reason


def test_a_pending_claim_is_not_bound() -> None:
    found = volume_view({"status": {"phase": "Pending"}}, None, "ns", "models", NODES)
    assert (found.bound, found.reason) == (False, "")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**12)
    | st.sampled_from(["", "1", "-1", "nvidia.com/gpu", "1e99"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "labels", "key", "type", "cpu", "nvidia.com/gpu", "requests", "resources"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([
    "name", "labels", "annotations", "taints", "conditions", "allocatable", "unschedulable", "nodeName",
    "phase", "containers", "initContainers", "containerStatuses", "affinity", "volumes", "ownerReferences",
    "overhead",
])  # fmt: skip
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        part: st.dictionaries(FIELDS, JSON, max_size=4) | JSON for part in ("metadata", "spec", "status")
    },
)


@given(OBJECTS)
def test_a_node_of_any_shape_is_read(obj: dict[str, Any]) -> None:
    node = node_view(obj)
    assert all(amount >= 0 for amount in node.allocatable.extended.values())
    assert all(gpu.usable or gpu.reason for gpu in node.gpus)


@given(OBJECTS)
def test_a_pod_of_any_shape_is_read_or_its_request_is_named(obj: dict[str, Any]) -> None:
    try:
        pod = pod_view(obj)
    except QuantityError as error:
        assert str(error).startswith("pod ")  # noqa: PT017
    else:
        assert pod is None or pod.requests.pods == 1


def test_pods_of_nodes_that_are_gone_and_pods_without_a_node_hold_nothing() -> None:
    gpus = Resources(pods=1, extended={"nvidia.com/gpu": 8})
    pods = [
        PodView("a", "1", "1", "gone", "", "Running", False, gpus),
        PodView("a", "2", "2", "", "", "Pending", False, gpus),
    ]
    node = node_view({"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}})
    assert free_by_node([node], pods) == {"n": node.allocatable}
