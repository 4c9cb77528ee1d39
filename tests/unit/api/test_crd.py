"""The CRD is what the models say, and only what an API server takes as a structural schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from plimsoll.api import crd, reference
from plimsoll.api.kinds import KINDS, LLM_DEPLOYMENT, CustomKind
from plimsoll.api.v1alpha1.fields import Matches, Model, Rule

REPOSITORY = Path(__file__).parents[3]

JSON_SCHEMA_PROPS = frozenset(
    {
        *("type", "description", "default", "enum", "format", "pattern"),
        *(
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
        ),
        *("properties", "required", "items", "additionalProperties"),
        *("x-kubernetes-int-or-string", "x-kubernetes-list-map-keys", "x-kubernetes-list-type"),
        "x-kubernetes-validations",
    }
)
"""The part of apiextensions.k8s.io/v1 JSONSchemaProps that a structural schema needs here."""


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema node below and including `schema`, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + mark)


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    return crd.custom_resource_definition()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.kind)
def tree(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return fields_of(request.param)


@pytest.fixture(scope="module")
def deployment() -> dict[str, dict[str, Any]]:
    return fields_of(LLM_DEPLOYMENT)


def fields_of(kind: CustomKind) -> dict[str, dict[str, Any]]:
    """Every schema node of a kind by its path."""
    schema = crd.open_api_schema(kind)
    schema["properties"].pop("metadata")  # the API server's own
    return dict(nodes(schema))


@pytest.mark.parametrize("path", crd.files(), ids=str)
def test_the_committed_file_is_what_the_models_say(path: Path) -> None:
    assert (REPOSITORY / path).read_text(encoding="utf-8") == crd.files()[path]


def test_the_reference_page_is_what_the_crd_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (REPOSITORY / reference.PATH).read_text(encoding="utf-8") == reference.page()
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_check_tells_a_stale_file_and_writing_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crd.main(["--check", str(tmp_path)]) == 1
    assert "run `make generate`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert crd.main([str(tmp_path)]) == 0
    assert crd.main(["--check", str(tmp_path)]) == 0


def test_the_file_is_under_100_kilobytes_and_has_no_anchors() -> None:
    assert len(crd.rendered().encode()) < 100_000
    assert yaml.safe_load(crd.rendered()) == crd.custom_resource_definition()
    assert "&id" not in crd.rendered()


def test_only_keys_of_a_structural_schema(tree: dict[str, dict[str, Any]]) -> None:
    assert {
        path: node.keys() - JSON_SCHEMA_PROPS
        for path, node in tree.items()
        if node.keys() - JSON_SCHEMA_PROPS
    } == {}


def test_every_field_is_described(tree: dict[str, dict[str, Any]]) -> None:
    named = {path: node for path, node in tree.items() if not path.endswith(("[]", "{}"))}
    assert [path for path, node in named.items() if not node.get("description", "").strip()] == []


def test_descriptions_are_sentences_on_one_line(tree: dict[str, dict[str, Any]]) -> None:
    told = {path: node["description"] for path, node in tree.items() if "description" in node}
    assert [path for path, text in told.items() if "\n" in text or not text.endswith(".")] == []


def test_every_node_has_a_type_or_is_int_or_string(tree: dict[str, dict[str, Any]]) -> None:
    untyped = [
        path for path, node in tree.items() if ("type" in node) == ("x-kubernetes-int-or-string" in node)
    ]
    assert untyped == []


def test_every_list_map_and_text_is_bounded(tree: dict[str, dict[str, Any]]) -> None:
    def bounded(path: str, node: dict[str, Any]) -> bool:
        if path in {".apiVersion", ".kind"}:
            return True
        if node.get("type") == "array":
            return "maxItems" in node
        if node.get("type") == "string" or "x-kubernetes-int-or-string" in node:
            return "maxLength" in node or "enum" in node
        return "additionalProperties" not in node or "maxProperties" in node

    assert [path for path, node in tree.items() if not bounded(path, node)] == []


def test_items_of_object_lists_have_keys_unless_the_list_is_replaced_whole(
    deployment: dict[str, dict[str, Any]],
) -> None:
    keyed = {
        path: node.get("x-kubernetes-list-map-keys")
        for path, node in deployment.items()
        if node.get("type") == "array" and node["items"].get("type") == "object"
    }
    assert keyed == {
        ".spec.placement.tolerations": None,
        ".spec.podTemplate.env": ["name"],
        ".spec.podTemplate.imagePullSecrets": ["name"],
        ".status.plans": ["revision"],
        ".status.plans[].memory": ["stage"],
        ".status.plans[].placements": ["replica", "stage"],
        ".status.plans[].rejected": None,
        ".status.rejected": None,
        ".status.measured": ["stage"],
        ".status.replicaStatuses": ["revision", "replica"],
        ".status.startup": ["stage"],
        ".status.exclusions": None,
        ".status.conditions": ["type"],
    }


def test_status_has_no_defaults(tree: dict[str, dict[str, Any]]) -> None:
    assert [path for path, node in tree.items() if path.startswith(".status") and "default" in node] == []


def test_optional_objects_open_their_defaults(deployment: dict[str, dict[str, Any]]) -> None:
    opened = [path for path, node in deployment.items() if node.get("default") == {}]
    sections = ("workload", "quantization", "parallelism", "placement", "plan", "rollout", "service")
    assert opened == [f".spec.{section}" for section in sections]


def test_scale_and_columns_point_at_fields_that_exist(
    definition: dict[str, Any], deployment: dict[str, dict[str, Any]]
) -> None:
    [version] = definition["spec"]["versions"]
    scale = version["subresources"]["scale"]
    assert {
        deployment[path]["type"] for path in (scale["specReplicasPath"], scale["statusReplicasPath"])
    } == {"integer"}
    assert deployment[scale["labelSelectorPath"]]["type"] == "string"
    columns = {column["name"]: column for column in version["additionalPrinterColumns"]}
    assert [name for name, column in columns.items() if not column["priority"]] == [
        "Ready", "Reason", "Model", "Plan", "Replicas", "Serving", "Age"
    ]  # fmt: skip
    for name, path in {
        "Plan": ".status.plans[].summary",
        "Serving": ".status.readyReplicas",
        "URL": ".status.url",
    }.items():
        assert columns[name]["jsonPath"].replace("[0]", "[]") == path
        assert path in deployment


class Union(Model):
    """A part."""

    value: int | str
    """Two types."""


class Tuple(Model):
    """A part."""

    value: tuple[int, str]
    """A pair."""


@pytest.mark.parametrize(("part", "says"), [(Union, "a union of 2 types"), (Tuple, "prefixItems")])
def test_what_a_crd_cannot_say_stops_the_generator(part: type[Model], says: str) -> None:
    schema = part.model_json_schema()
    with pytest.raises(crd.SchemaError, match=says):
        crd.structural(schema, {}, defaults=True)


def test_rules_of_a_part_and_of_its_fields_come_with_their_words() -> None:
    class Part(Model):
        """A part."""

        code: Annotated[str, Field(max_length=9), Matches("^[a-z]+$", "write lower case letters")] = ""
        """A code."""
        RULES = (Rule("self.code != 'no'", lambda part: part.code != "no", "write yes"),)

    schema = crd.structural(Part.model_json_schema(schema_generator=crd.WithRules), {}, defaults=True)
    assert schema["x-kubernetes-validations"] == [{"rule": "self.code != 'no'", "message": "write yes"}]
    assert schema["properties"]["code"] == {
        "description": "A code.",
        "type": "string",
        "maxLength": 9,
        "x-kubernetes-validations": [
            {"rule": "self.matches(r'^[a-z]+$')", "message": "write lower case letters"}
        ],
    }
