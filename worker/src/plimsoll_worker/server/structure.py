"""What clients may ask of an answer's form: `response_format`, `tools`, `tool_choice`, as OpenAI has them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

NAME = r"^[a-zA-Z0-9_-]{1,64}$"
MAX_TOOLS = 128


class ClientModel(BaseModel):
    """Unknown fields are refused, and so are NaN and infinity.

    A client is told the first of its errors, so no more are looked for: pydantic gathers a kilobyte for each,
    and a body has room for millions. Lists have `fail_fast` for the same reason.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        others = {name for name in data if name not in known}
        if len(others) > 1:
            others.remove(next(name for name in data if name in others))
            return {name: value for name, value in data.items() if name not in others}
        return data


class JsonSchema(ClientModel):
    """A schema that the answer follows."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """None: any JSON object."""
    strict: bool | None = None
    """True: all of it is held to, or the request refused. Else what a grammar cannot hold an answer to is
    left out."""


class ResponseFormat(ClientModel):
    """Text, any JSON object, or one by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _a_schema_where_there_is_one(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                'send {"type": "json_schema", "json_schema": {"name": …, "schema": …}}, or a type without one'
            )
        return self


class Function(ClientModel):
    """What the model may call, by the client's hand."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of an object; None: it takes nothing."""
    strict: bool | None = None
    """As in JsonSchema."""


class Tool(ClientModel):
    """A function, the one kind of tool that chat completions have."""

    type: Literal["function"]
    function: Function


class ToolChoice(ClientModel):
    """Whether the model calls."""

    mode: Literal["none", "auto", "required"]
    name: str | None = None
    """With "required": this function alone."""


def _tool_choice(value: Any) -> Any:
    match value:
        case "none" | "auto" | "required":
            return {"mode": value}
        case {"type": "function", "function": {"name": str(name)}} if re.match(NAME, name):
            return {"mode": "required", "name": name}
    raise ValueError('expected "none", "auto", "required" or {"type": "function", "function": {"name": …}}')


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
Choice = Annotated[ToolChoice, BeforeValidator(_tool_choice)]


class CalledFunction(ClientModel):
    """Of a call that the model made before."""

    name: str
    arguments: str
    """A JSON object."""

    @field_validator("arguments")
    @classmethod
    def _an_object(cls, text: str) -> str:
        try:
            known = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            known = False
        if not known:
            raise ValueError("expected a JSON object in a string")
        return text


class ToolCall(ClientModel):
    """A call that the model made before, as the client tells it back."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: arguments as what they are, not as a string of JSON."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}
