"""Writes the CustomResourceDefinitions from the models: `python -m plimsoll.api.crd [--check] [DIR]`.

A CRD takes less than JSON Schema: no references, no null, no titles, no `additionalProperties: false` beside
properties. So pydantic's schema is rewritten key by key, and a key that this module does not know stops it:
what cannot be said to the API server must not vanish silently. A CRD written by hand was rejected because the
two would drift; existing generators because they know neither rules with messages nor nested defaults.

What the models say becomes what the server does:
  docstrings              descriptions, which `kubectl explain` prints
  constraints             the schema
  RULES and Matches       CEL rules with a message
  defaults of the spec    defaults, nested, so that six lines are stored whole; empty ones are left out
  defaults of the status  nothing: status holds only what the operator wrote
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from plimsoll.api.kinds import KINDS, LLM_DEPLOYMENT, CustomKind
from plimsoll.api.v1alpha1 import GROUP, VERSION, Model
from plimsoll.api.v1alpha1.fields import INT_OR_STRING, VALIDATIONS

DIRECTORIES = (Path("crds"), Path("charts/plimsoll-crds/templates"))
"""Where the files are committed, the same bytes: for `kubectl apply`, and as templates of the CRD chart."""

HEADER = "# Written by `python -m plimsoll.api.crd` from operator/src/plimsoll/api/v1alpha1; edit that.\n"

COPIED = (
    "description",
    "type",
    "format",
    INT_OR_STRING,
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    VALIDATIONS,
)
"""In the order in which they are written."""

DROPPED = frozenset(
    {"title", "propertyNames", "default", "additionalProperties", "$ref", "$defs", "const", "anyOf"}
)
"""Without a counterpart (title; keys of maps are checked by rules), or treated one by one below."""


class SchemaError(Exception):
    """A model uses something of JSON Schema that a CRD cannot say; the message names it."""


class WithRules(GenerateJsonSchema):
    """pydantic's generator, plus the RULES of each model, which only the class knows."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        written = super().model_schema(schema)
        rules = schema["cls"].RULES if issubclass(schema["cls"], Model) else ()
        if rules:
            written[VALIDATIONS] = [{"rule": rule.cel, "message": rule.message} for rule in rules]
        return written


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any], *, defaults: bool) -> dict[str, Any]:
    """One node of pydantic's schema as a CRD takes it. Raises SchemaError for what a CRD cannot say."""
    node = _resolved(node, definitions)
    if unknown := node.keys() - {*COPIED, "properties", "items"} - DROPPED:
        raise SchemaError(
            f"{sorted(unknown)} in {dict(node)}: say how a CRD expresses it, in {__name__}.structural"
        )

    out = {key: node[key] for key in COPIED if key in node}
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    if "const" in node:
        out["enum"] = [node["const"]]
    if out.get("type") == "integer":
        out["format"] = "int64"
    if out.get(INT_OR_STRING):
        out.pop("type")
    if defaults and node.get("default") not in (None, "", [], {}):
        out["default"] = node["default"]
    if "items" in node:
        out["items"] = structural(node["items"], definitions, defaults=defaults)
    if isinstance(node.get("additionalProperties"), Mapping):
        out["additionalProperties"] = structural(node["additionalProperties"], definitions, defaults=defaults)
    if "properties" in node:
        out["properties"] = {
            name: structural(child, definitions, defaults=defaults)
            for name, child in node["properties"].items()
        }
        if defaults:
            _open_defaults(out)
    return out


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """`node` with its reference put in place and "or null" taken off: absence is how Kubernetes says null."""
    if "anyOf" in node:
        others = [option for option in node["anyOf"] if option != {"type": "null"}]
        if len(others) != 1:
            raise SchemaError(
                f"a union of {len(others)} types in {dict(node)}: "
                "use one object with optional fields and a rule"
            )
        node = {**others[0], **{key: value for key, value in node.items() if key != "anyOf"}}
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _resolved(
            {**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions
        )
    return dict(node)


def _open_defaults(parent: dict[str, Any]) -> None:
    """The server fills defaults only inside objects that exist: optional ones that hold some get `{}`."""
    for name, child in parent["properties"].items():
        if (
            child.get("type") == "object"
            and name not in parent.get("required", ())
            and _complete_by_itself(child)
        ):
            child["default"] = {}


def _complete_by_itself(node: Mapping[str, Any]) -> bool:
    """Whether an empty object is valid and would be filled."""
    return not node.get("required") and any(
        "default" in child for child in node.get("properties", {}).values()
    )


def open_api_schema(kind: CustomKind = LLM_DEPLOYMENT) -> dict[str, Any]:
    raw = kind.model.model_json_schema(by_alias=True, schema_generator=WithRules)
    definitions = raw["$defs"]
    schema = {
        "type": "object",
        "description": " ".join(raw["description"].split()),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{kind.kind}."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": structural(raw["properties"]["spec"], definitions, defaults=True),
            "status": structural(raw["properties"]["status"], definitions, defaults=False),
        },
    }
    return schema | ({VALIDATIONS: list(kind.rules)} if kind.rules else {})


def custom_resource_definition(kind: CustomKind = LLM_DEPLOYMENT) -> dict[str, Any]:
    """The CRD of a kind as a plain object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            # With the CRD go all its objects, and with LLMDeployments their pods: removing the chart must not
            # remove it.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.plural.removesuffix("s"),
                "shortNames": [kind.short_name],
                "categories": ["plimsoll"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": kind.subresources,
                    "additionalPrinterColumns": [column.to_dict() for column in kind.columns],
                    "schema": {"openAPIV3Schema": open_api_schema(kind)},
                }
            ],
        },
    }


def rendered(kind: CustomKind = LLM_DEPLOYMENT) -> str:
    """The CRD as the text of its file, the same on every machine."""
    whole = json.loads(json.dumps(custom_resource_definition(kind)))  # nothing shared: YAML writes anchors
    text = HEADER + yaml.safe_dump(whole, sort_keys=False, width=110, allow_unicode=True)
    if "{{" in text:
        raise SchemaError("'{{' in a description: Helm would read it as a template; write it in other words")
    return text


def files(directories: Iterable[Path] = DIRECTORIES) -> dict[Path, str]:
    """What is committed, by path from the root of the repository."""
    return {directory / kind.file_name: rendered(kind) for directory in directories for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check say which copies differ. Returns the exit code: 1 when one differs."""
    parser = argparse.ArgumentParser(
        prog="python -m plimsoll.api.crd", description="Write the CRDs from the models."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    parser.add_argument("directory", nargs="?", type=Path, help=f"default: {' '.join(map(str, DIRECTORIES))}")
    options = parser.parse_args(arguments)
    directories = (options.directory,) if options.directory else DIRECTORIES
    return written(files(directories), check=options.check)


def written(wanted: Mapping[Path, str], *, check: bool) -> int:
    """Bring files up to date, or only say which are not. Returns an exit code."""
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"{path} is not what its source says: run `make generate`", file=sys.stderr)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
