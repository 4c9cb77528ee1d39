"""Writes the reference `docs/api.md` from the CRD: `python -m plimsoll.api.reference [--check]`.

It is made from the CRD and not from the models, so it tells what the API server enforces. `kubectl explain`
prints the same descriptions; this page is for people without a cluster at hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plimsoll.api.crd import open_api_schema, written
from plimsoll.api.kinds import MEMORY_PROFILE
from plimsoll.api.v1alpha1 import API_VERSION, KIND
from plimsoll.api.v1alpha1.fields import INT_OR_STRING, VALIDATIONS

PATH = Path("docs/api.md")

HEAD = f"""\
<!-- Written by `python -m plimsoll.api.reference` from the CRD; edit operator/src/plimsoll/api/v1alpha1. -->

# {KIND} `{API_VERSION}`

`*` marks what must be given; the fields of a list's items stand under `[]`. Italics are what the API server
answers when a value breaks a rule.
"""


def page() -> str:
    """The whole page as Markdown."""
    schema = open_api_schema()
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    parts = [HEAD]
    for name, section in spec["properties"].items():
        if section["type"] == "object":
            parts.append(_table(f"spec.{name}", section))
    plain = {name: part for name, part in spec["properties"].items() if part["type"] != "object"}
    parts.append(_table("spec: the rest", {"properties": plain, "description": ""}))
    parts.append(_table("status", status))
    profile = open_api_schema(MEMORY_PROFILE)
    parts.append(f"# {MEMORY_PROFILE.kind} `{API_VERSION}`\n\n{profile['description']}\n")
    parts += [_table(name, profile["properties"][name]) for name in ("spec", "status")]
    return "\n".join(parts)


def _table(title: str, section: Mapping[str, Any]) -> str:
    rows = [f"| `{path}` | {_type(node)} | {_told(node)} |" for path, node in _fields(section, "")]
    lines = [
        f"## {title}",
        "",
        section["description"],
        "",
        "| field | type | |",
        "| --- | --- | --- |",
    ]
    rules = [f"- {_italic(rule['message'])}" for rule in section.get(VALIDATIONS, ())]
    return "\n".join([*lines, *rows, *([""] if rules else []), *rules, ""]).replace("\n\n\n", "\n\n")


def _fields(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every field below `node`, with its path and `*` where it must be given."""
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path + ("*" if name in required else ""), child
        items = child.get("items", {})
        yield from _fields(child, f"{path}.")
        yield from _fields(items, f"{path}[].")


def _type(node: Mapping[str, Any]) -> str:
    if node.get(INT_OR_STRING):
        return "quantity"
    if "enum" in node:
        return " \\| ".join(f"`{value}`" if value else '`""`' for value in node["enum"])
    if node["type"] == "array":
        return f"list of {_type(node['items'])}, at most {node['maxItems']}"
    if "additionalProperties" in node:
        return f"map of {_type(node['additionalProperties'])}, at most {node['maxProperties']}"
    if node["type"] == "integer" and "maximum" in node:
        return f"integer, {node['minimum']} to {node['maximum']}"
    return str(node["type"])


def _told(node: Mapping[str, Any]) -> str:
    """Description and rules of a field, in one cell."""
    rules = [*node.get(VALIDATIONS, ()), *node.get("items", {}).get(VALIDATIONS, ())]
    checked = "".join(f" {_italic(rule['message'])}" for rule in rules)
    return str(node.get("description", "") + checked).replace("|", "\\|")


def _italic(text: str) -> str:
    return "*" + text.replace("*", "\\*") + "*"


def files() -> dict[Path, str]:
    """What is committed, by path from the root of the repository."""
    return {PATH: page()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or with --check say that it differs. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m plimsoll.api.reference", description="Write docs/api.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page differs")
    return written(files(), check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
