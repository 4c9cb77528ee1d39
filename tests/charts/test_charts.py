"""The charts render what they promise, and refuse values that mean nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from tests.charts.conftest import CHARTS, Run

from plimsoll.cluster import kube, leader
from plimsoll.settings import Settings

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]


def one(objects: Objects, kind: str, suffix: str = "") -> dict[str, Any]:
    [found] = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    return found


def pod_of(objects: Objects) -> dict[str, Any]:
    pod: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("chart", ["plimsoll", "plimsoll-crds"])
def test_lint_finds_nothing(helm: Run, chart: str) -> None:
    done = helm("lint", "--strict", str(CHARTS / chart))
    assert done.returncode == 0, done.stdout


def test_both_charts_have_the_version_of_the_program() -> None:
    import plimsoll

    for chart in ("plimsoll", "plimsoll-crds"):
        told = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
        assert told["appVersion"] == plimsoll.__version__, chart


def test_the_crd_chart_keeps_the_crds_when_it_goes(render: Render) -> None:
    crds = render(chart="plimsoll-crds")
    assert {crd["spec"]["names"]["kind"] for crd in crds} == {"LLMDeployment", "MemoryProfile"}
    assert all(crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for crd in crds)


def test_a_new_pod_may_start_before_the_old_one_ends_because_each_holds_the_lease_under_its_own_name(
    render: Render,
) -> None:
    objects = render()
    deployment = one(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    [container] = pod_of(objects)["containers"]
    identity = next(env for env in container["env"] if env["name"] == "PLIMSOLL_IDENTITY")
    assert identity["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    assert "PodDisruptionBudget" not in {item["kind"] for item in objects}


def test_several_pods_are_spread_and_never_evicted_all_at_once(render: Render) -> None:
    objects = render("replicas=2")
    assert one(objects, "Deployment")["spec"]["replicas"] == 2
    [term] = pod_of(objects)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = one(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == labels
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}


def test_an_affinity_of_ones_own_replaces_the_spread(render: Render) -> None:
    assert pod_of(render("replicas=2", 'affinity={"nodeAffinity":{}}'))["affinity"] == {"nodeAffinity": {}}


def test_the_lease_is_the_one_thing_that_is_written_in_the_operators_own_namespace(render: Render) -> None:
    rules = one(render(), "Role", "-leader")["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"create", "get", "update"}
    assert [rule["resourceNames"] for rule in rules if "create" not in rule["verbs"]] == [[leader.NAME]]


def test_the_selector_finds_the_pod_and_an_upgrade_keeps_it(render: Render) -> None:
    deployment = one(render(), "Deployment")["spec"]
    selector, labels = deployment["selector"]["matchLabels"], deployment["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert not any("version" in key or "chart" in key for key in selector)


def test_the_operator_goes_nowhere_special_by_default(render: Render) -> None:
    assert (
        pod_of(render()).keys().isdisjoint({"tolerations", "nodeSelector", "affinity", "priorityClassName"})
    )


def test_each_setting_of_the_operator_has_a_value_and_nothing_else_is_set(render: Render) -> None:
    [container] = pod_of(render())["containers"]
    given = {env["name"] for env in container["env"] if env["name"].startswith("PLIMSOLL_")}
    assert given == {f"PLIMSOLL_{name.upper()}" for name in Settings.model_fields}


def test_the_defaults_of_the_chart_are_the_operators_own(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    [container] = pod_of(render('image.operator.tag="dev"', 'image.worker.tag="dev"'))["containers"]
    default = Settings()
    for env in container["env"]:
        if env["name"].startswith("PLIMSOLL_"):
            told_by_the_pod = default.identity if env["name"] == "PLIMSOLL_IDENTITY" else default.namespace
            monkeypatch.setenv(env["name"], env.get("value", told_by_the_pod))
    assert Settings() == default


def test_values_reach_the_pod(render: Render) -> None:
    objects = render(
        'image={"operator":{"repository":"r/o","tag":"1"},"worker":{"repository":"r/w","tag":"2"}}',
        'image.pullPolicy="Never"',
        'hub.endpoint="http://hub:8080"',
        'imagePullSecrets=[{"name":"registry"}]',
        'tolerations=[{"key":"infra","operator":"Exists"}]',
        'nodeSelector={"pool":"infra"}',
        'podLabels={"team":"a"}',
        'podAnnotations={"note":"b"}',
        'priorityClassName="high"',
    )
    template = one(objects, "Deployment")["spec"]["template"]
    pod = template["spec"]
    [container] = pod["containers"]
    environment = {env["name"]: env.get("value") for env in container["env"]}
    assert container["image"] == environment["PLIMSOLL_OPERATOR_IMAGE"] == "r/o:1"
    assert environment["PLIMSOLL_WORKER_IMAGE"] == "r/w:2"
    assert container["imagePullPolicy"] == environment["PLIMSOLL_IMAGE_PULL_POLICY"] == "Never"
    assert environment["PLIMSOLL_HF_ENDPOINT"] == "http://hub:8080"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["tolerations"] == [{"key": "infra", "operator": "Exists"}]
    assert pod["nodeSelector"] == {"pool": "infra"}
    assert pod["priorityClassName"] == "high"
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"] == {"note": "b"}


def test_ports_and_probes_move_together(render: Render) -> None:
    [container] = pod_of(render("metrics.port=9191", "health.port=8181"))["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "health": 8181,
        "metrics": 9191,
    }
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def rights(objects: Objects) -> dict[tuple[str, str], set[str]]:
    """The operator's verbs by group and resource."""
    return {
        (group, resource): set(rule["verbs"])
        for role in (one(objects, "ClusterRole", "plimsoll"), one(objects, "Role", "-leader"))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_operator_may_touch_what_its_code_names_and_no_other_kind(render: Render) -> None:
    named = {
        (kind.group_version.rpartition("/")[0], kind.plural)
        for kind in vars(kube).values()
        if isinstance(kind, kube.Kind)
    }
    assert named == {(group, resource) for group, resource in rights(render()) if "/" not in resource}


def test_the_operator_has_the_least_rights(render: Render) -> None:
    allowed = rights(render())
    assert not [pair for pair, verbs in allowed.items() if "*" in (*pair, *verbs)]
    resources = {resource for _, resource in allowed}
    assert resources.isdisjoint({"secrets", "configmaps", "pods/exec", "serviceaccounts", "clusterroles"})
    read_only = {"get", "list", "watch"}
    for resource in ("nodes", "persistentvolumes", "persistentvolumeclaims"):
        assert allowed["", resource] == read_only
    assert allowed["plimsoll.dev", "llmdeployments"] == read_only
    assert allowed["plimsoll.dev", "llmdeployments/finalizers"] == {"update"}
    assert allowed["", "pods"] == read_only | {"create", "patch", "delete"}


def test_readers_read_and_writers_write(render: Render) -> None:
    objects = render()
    edit, view = one(objects, "ClusterRole", "-edit"), one(objects, "ClusterRole", "-view")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in edit["metadata"]["labels"] if prefix in key} == {f"{prefix}edit", f"{prefix}admin"}
    assert {key for key in view["metadata"]["labels"] if prefix in key} == {f"{prefix}view"}
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert not any(
        rule["resources"] == ["llmdeployments/status"] and rule["verbs"] != ["get"] for rule in edit["rules"]
    )


@pytest.mark.parametrize(
    ("setting", "kind", "suffix"),
    [
        ("rbac.create=false", "ClusterRoleBinding", "plimsoll"),
        ("rbac.aggregate=false", "ClusterRole", "-edit"),
        ("rbac.aggregate=false", "ClusterRole", "-view"),
        ("serviceAccount.create=false", "ServiceAccount", ""),
    ],
)
def test_what_is_switched_off_is_not_there(render: Render, setting: str, kind: str, suffix: str) -> None:
    def count(objects: Objects) -> int:
        return sum(item["kind"] == kind and item["metadata"]["name"].endswith(suffix) for item in objects)

    assert (count(render()), count(render(setting))) == (1, 0)


def test_a_metrics_service_only_when_asked_for(render: Render) -> None:
    assert not [item for item in render() if item["kind"] == "Service"]
    service = one(render("metrics.service.enabled=true"), "Service")
    assert service["spec"]["ports"][0]["targetPort"] == "metrics"


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from leaves(child, f"{path}{name}.")


def test_schema_and_values_name_the_same_fields_and_all_are_told() -> None:
    schema = json.loads((CHARTS / "plimsoll/values.schema.json").read_text())
    values = yaml.safe_load((CHARTS / "plimsoll/values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    told = dict(leaves(schema))
    assert [path for path, part in told.items() if not part.get("description")] == []

    def given(part: Any, path: str = "") -> Iterator[str]:
        for name, child in part.items() if isinstance(part, dict) else ():
            yield f"{path}{name}"
            yield from given(child, f"{path}{name}.")

    free_form = re.compile(r"resources\.(requests|limits)\.")
    assert {path for path in given(values) if not free_form.match(path)} == told.keys() - {"global"}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ('imge={"operator":{}}', "imge"),
        ('image.operator.tga="dev"', "tga"),
        ('image.operator.repository="plimsoll.dev/operator:dev"', "repository"),
        ('image.pullPolicy="Sometimes"', "pullPolicy"),
        ('hub.endpoint="huggingface.co"', "endpoint"),
        ("metrics.port=80", "port"),
        ("timing.replanSeconds=0", "replanSeconds"),
        ('logLevel="LOUD"', "logLevel"),
        ("replicas=0", "replicas"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(helm: Run, setting: str, says: str) -> None:
    done = helm("template", "plimsoll", str(CHARTS / "plimsoll"), "--set-json", setting)
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr
    assert says in done.stderr
