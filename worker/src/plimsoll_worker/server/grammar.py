"""Schemas of clients as grammars, checked before anything of the request runs.

llguidance understands most of JSON Schema and says what it does not; where in the schema that stands, and
that a schema has no end, it does not say: that is found here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from plimsoll_worker.engine.guide import limits
from plimsoll_worker.server.errors import ApiError, bad_request

MAX_CHARACTERS = 2**17
"""Of all schemas of a request: compiling that much takes up to 2 s, of a thread of its own."""
MAX_PLACES = 500
"""Parts of a schema that are tried by themselves to find the one that is wrong."""

WHITESPACE = r" |\n[ \t]{0,20}"
"""Where JSON may have any, once at each place (llguidance, docs/json_schema.md): a blank, or a new line with
its indentation, which is what models learn to write. Any amount is what a model at a loss writes until its
tokens are used up; none at all is what few models have seen. The rule is llama.cpp's (grammars/json.gbnf)."""

Json = dict[str, Any]
Schema = Mapping[str, Any] | bool

OBJECT: Json = {"type": "object"}


def inline(schema: Json, *, strict: bool) -> str:
    """The schema as llguidance reads it within a grammar."""
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": not strict}})


def of_rules(rules: str) -> str:
    """Rules in llguidance's Lark as a grammar. Raises ApiError when they are too long."""
    from llguidance import LLMatcher

    if len(rules) > MAX_CHARACTERS:
        raise bad_request(
            f"the schemas of this request have {len(rules)} characters, {MAX_CHARACTERS} are allowed; "
            "leave out descriptions, or ask for less at a time",
            code="schema_too_large",
        )
    return LLMatcher.grammar_from_lark(rules)


def check(schema: Json, *, strict: bool, param: str) -> None:
    """Raises ApiError for a schema that no answer, or no grammar, can follow; `param`: its place in the
    request."""
    told = _fault(schema, strict=strict)
    if told is not None:
        place, fault = _deepest(schema, told, strict=strict)
        raise _refused(f"{fault} (at {place})" if place else fault, param)
    if not _ends(schema):
        raise _refused(
            "every answer to it would go on without end: it needs itself in a required place", param
        )


def check_whole(grammar: str, *, param: str) -> None:
    """Raises ApiError for a grammar that llguidance does not take."""
    from llguidance import LLMatcher

    told = LLMatcher.validate_grammar(grammar, None, limits=limits())
    if told:
        raise _refused(told.splitlines()[0], param)  # behind it stands the whole grammar


def _refused(fault: str, param: str) -> ApiError:
    return bad_request(
        f"{param}: this schema cannot be followed: {fault}", param=param, code="invalid_schema"
    )


def _fault(schema: Json, *, strict: bool) -> str | None:
    """What llguidance has against it."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(inline(schema, strict=strict))
    # Some faults are drawn over several lines.
    return " ".join(LLMatcher.validate_grammar(grammar, None, limits=limits()).split()) or None


def _deepest(schema: Json, fault: str, *, strict: bool) -> tuple[str, str]:
    """The innermost part that has a fault by itself: its place as a JSON Pointer, and the fault."""
    place, left = "", MAX_PLACES
    definitions: Json = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    current = schema
    while True:
        for step, part in _parts(current):
            left -= 1
            inner = _fault({**definitions, **part}, strict=strict) if left > 0 else None
            if inner is not None:
                place, fault, current = f"{place}/{step}", inner, part
                break
        else:
            return place, fault


def _parts(schema: Json) -> Iterator[tuple[str, Json]]:
    """Schemas within a schema, with the way there."""
    for key, value in schema.items():
        if isinstance(value, dict):
            if key in ("properties", "patternProperties", "$defs", "definitions"):
                yield from ((f"{key}/{name}", part) for name, part in value.items() if isinstance(part, dict))
            elif key in ("items", "additionalProperties"):
                yield key, value
        elif isinstance(value, list) and key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            yield from ((f"{key}/{at}", part) for at, part in enumerate(value) if isinstance(part, dict))


def _ends(schema: Json) -> bool:
    """Whether some answer is finite: the least fixed point over what its references lead to."""
    targets = {name: part for name in set(_references(schema)) if (part := _target(schema, name)) is not None}
    finite = set[str]()
    while found := {
        name for name, part in targets.items() if name not in finite and _finite(part, finite, targets)
    }:
        finite |= found
    return _finite(schema, finite, targets)


def _finite(schema: Schema, finite: set[str], targets: Mapping[str, Schema]) -> bool:
    """Whether an answer ends, if those of the references `finite` do."""
    if isinstance(schema, bool):
        return True
    name = schema.get("$ref")
    parts: list[Schema] = list(schema.get("allOf", ()))
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        parts += [properties[key] for key in schema.get("required", ()) if key in properties]
    if schema.get("type") == "array" and schema.get("minItems", 0) > 0:
        items = [*schema.get("prefixItems", ()), schema.get("items", True)]
        parts += items[: schema["minItems"]]
    either = [schema[key] for key in ("anyOf", "oneOf") if key in schema]
    return (
        (name not in targets or name in finite)
        and all(_finite(part, finite, targets) for part in parts)
        and all(any(_finite(part, finite, targets) for part in several) for several in either)
    )


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)


def _target(schema: Json, reference: str) -> Schema | None:
    """What a reference within the schema leads to; None: llguidance may know."""
    if not reference.startswith("#"):
        return None
    part: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) else None
    return part if isinstance(part, dict | bool) else None
