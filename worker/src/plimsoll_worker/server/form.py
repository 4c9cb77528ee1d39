"""The form an answer must have: from `response_format` and `tools` to one grammar, and to what reads calls
out of the answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from plimsoll_worker.server.errors import bad_request
from plimsoll_worker.server.grammar import OBJECT, check, check_whole, inline, of_rules
from plimsoll_worker.server.protocol import ChatRequest
from plimsoll_worker.server.structure import ResponseFormat, Tool, ToolChoice
from plimsoll_worker.server.tool_families import FAMILIES, Calling, parameters_of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """Of the answers to one request."""

    grammar: str | None = None
    """What they follow; None: nothing."""
    tools: list[Json] | None = None
    """For the chat template."""
    calling: Calling | None = None
    """How to read calls out of them; None: there are none."""


async def form_of(request: ChatRequest, calling: Calling | None, eos: frozenset[int]) -> Form:
    """`calling`: how the model calls functions, if it does. Raises ApiError."""
    format_, choice = request.response_format, request.tool_choice
    tools = request.tools or []
    if choice is not None and choice.mode == "none":
        tools = []
    if not tools and (format_ is None or format_.type == "text"):
        return Form()
    _check_ends(request, eos, "tools" if tools else "response_format")
    # A large schema takes its time, and others' streams go on meanwhile.
    return await asyncio.to_thread(_form, format_, tools, choice, request.parallel_tool_calls, calling)


def _form(
    format_: ResponseFormat | None,
    tools: list[Tool],
    choice: ToolChoice | None,
    several: bool | None,
    calling: Calling | None,
) -> Form:
    content = _content(format_)
    if not tools:
        assert content is not None
        grammar = of_rules(f"start: %json {content}\n")
        check_whole(grammar, param="response_format")
        return Form(grammar)
    if calling is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise bad_request(
            "this model's chat template has no way to call functions that this engine knows "
            f"({known}); leave tools out",
            param="tools",
            code="tools_not_supported",
        )
    if content is not None and not calling.family.opens:
        raise bad_request(
            f"response_format and tools do not go together with this model: calls of {calling.family.name} "
            "models are JSON too, and could not be told from the answer",
            param="response_format",
        )
    offered = tools
    if choice is not None and choice.name is not None:
        offered = [tool for tool in tools if tool.function.name == choice.name]
        several = False
    rules = calling.rules(
        [tool.function for tool in offered],
        needed=choice is not None and choice.mode == "required",
        several=several is not False,
        content=content,
    )
    grammar = of_rules(rules)
    for at, tool in enumerate(tools):
        _check_parameters(tool, f"tools.{at}.function.parameters")
    check_whole(grammar, param="tools")
    return Form(grammar, [tool.model_dump(exclude_none=True) for tool in tools], calling)


def _content(format_: ResponseFormat | None) -> str | None:
    """The schema of an answer that is JSON. Raises ApiError."""
    if format_ is None or format_.type == "text":
        return None
    asked = format_.json_schema
    if asked is None or asked.schema_ is None:
        return inline(OBJECT, strict=True)
    content = inline(asked.schema_, strict=bool(asked.strict))
    of_rules(content)  # before a schema that is too long is looked at
    check(asked.schema_, strict=bool(asked.strict), param="response_format.json_schema.schema")
    return content


def _check_parameters(tool: Tool, param: str) -> None:
    schema = parameters_of(tool.function)
    if schema.get("type") != "object":
        raise bad_request(f"{param}: found the type {schema.get('type')!r}, expected 'object'", param=param)
    check(schema, strict=bool(tool.function.strict), param=param)


def _check_ends(request: ChatRequest, eos: frozenset[int], param: str) -> None:
    """An answer in a form ends where the form does, and nowhere else. Raises ApiError."""
    name = "ignore_eos" if request.ignore_eos else "min_tokens" if request.min_tokens else None
    if name is not None:
        raise bad_request(f"{name} and {param} do not go together: the form says where it ends", param=name)
    if not eos:
        raise bad_request(f"this model names no token that ends a text, which {param} needs", param=param)
