"""How models say that they call a function: each family in its own words, which its chat template teaches it.

What a template does not say is which family it belongs to, so it is told by the marks that it writes. A
template that writes none of these marks is refused for tools: calls that are not recognised would reach the
client as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.grammar import inline
from plimsoll_worker.server.structure import Function

Json = dict[str, Any]

NOTHING: Json = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a function that takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way to write calls."""

    name: str
    marks: tuple[str, ...]
    """All stand in the chat templates of the family."""
    foreign: tuple[str, ...] = ()
    """None of these does."""
    opens: str = ""
    """The token before a call; "": an answer that begins with a brace is one."""
    closes: str = ""
    """The token behind a call, if there is one."""
    listed: bool = False
    """One opening for a JSON list of calls."""
    arguments: str = "arguments"
    """The key that they stand under, behind "name"."""
    id_length: int = 24
    """Of the ids that calls get, beside their prefix."""
    id_prefix: str = "call_"


FAMILIES = (
    Family(
        name="Hermes",  # and Qwen
        marks=("<tool_call>", "</tool_call>", "arguments"),
        foreign=("<function=", "<arg_key>", "<|python_tag|>", "[TOOL_CALLS]"),
        opens="<tool_call>",
        closes="</tool_call>",
    ),
    Family(
        name="Llama 3.1",
        marks=("Environment: ipython", '"parameters": '),
        foreign=("<tool_call>", "[TOOL_CALLS]"),
        arguments="parameters",
    ),
    Family(
        name="Mistral",
        marks=("[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
        foreign=("[ARGS]", "[CALL_ID]", "<tool_call>"),
        opens="[TOOL_CALLS]",
        listed=True,
        id_length=9,  # its template refuses all others
        id_prefix="",
    ),
)


@dataclass(frozen=True, slots=True)
class Calling:
    """A model's way to call, with the tokens that its marks are."""

    family: Family
    tokens: Mapping[str, int]
    """By mark."""
    eos: frozenset[int]

    def rules(
        self, functions: Sequence[Function], *, needed: bool, several: bool, content: str | None
    ) -> str:
        """What an answer may be, in llguidance's Lark: calls of these functions, and, unless they are
        `needed`, what the model likes to say; with `content`, a schema, that is JSON by it instead.
        `several`: more than one call."""
        rules = {"start": self._answer(several=several, needed=needed, content=content is not None)}
        rules["call"] = self._call(several=several)
        rules["object"] = " | ".join(f"object_{at}" for at in range(len(functions)))
        for at, function in enumerate(functions):
            before = f'{{"name": {json.dumps(function.name)}, "{self.family.arguments}": '
            rules[f"object_{at}"] = f'{json.dumps(before)} arguments_{at} "}}"'
            # Each schema by itself, so that what it refers to within itself is found.
            rules[f"arguments_{at}"] = (
                f"%json {inline(parameters_of(function), strict=bool(function.strict))}"
            )
        if content is not None:
            rules["content"] = f"%json {content}"
        return "\n".join(f"{name}: {body}" for name, body in rules.items()) + "\n"

    def spelled(self, tokenizer: Tokenizer) -> dict[int, str]:
        """The marks that a text does not show."""
        return {token: mark for mark, token in self.tokens.items() if not tokenizer.decode([token])}

    def _answer(self, *, several: bool, needed: bool, content: bool) -> str:
        marks = ",".join(map(str, sorted({*self.tokens.values(), *self.eos})))
        anything = f"<[^{marks}]>*" if self.family.opens else "/([^{](.|\\n)*)?/"
        more = several and not self.family.listed and bool(self.family.opens)
        calls = 'call ("\\n" call)*' if more else "call"
        if needed:
            return calls
        if content:
            return f"{calls} | content"
        if not self.family.opens:
            return f"call | {anything}"
        return f"{anything} (call {anything})*" if more else f"{anything} call?"

    def _call(self, *, several: bool) -> str:
        family = self.family
        if not family.opens:
            return "object"
        opens = f"<[{self.tokens[family.opens]}]>"
        if family.listed:
            more = ' ("," " "? object)*' if several else ""
            return f'{opens} " "? "[" object{more} "]"'
        return f'{opens} "\\n" object "\\n" <[{self.tokens[family.closes]}]>'


def calling_of(tokenizer: Tokenizer, eos: frozenset[int]) -> Calling | None:
    """How this model calls; None: in no way that is known here."""
    source = tokenizer.chat_template.source if tokenizer.chat_template else ""
    plain = source.replace("\\", "")  # marks stand within Jinja's strings
    for family in FAMILIES:
        if all(mark in plain for mark in family.marks) and not any(mark in plain for mark in family.foreign):
            marks = [mark for mark in (family.opens, family.closes) if mark]
            found = {mark: tokenizer.backend.token_to_id(mark) for mark in marks}
            tokens = {mark: token for mark, token in found.items() if token is not None}
            return Calling(family, tokens, eos) if len(tokens) == len(marks) else None
    return None


def parameters_of(function: Function) -> Json:
    """Their schema, also where there are none."""
    return NOTHING if function.parameters is None else function.parameters
