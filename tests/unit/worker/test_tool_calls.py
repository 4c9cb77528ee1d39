"""Calls of functions: what each family's grammar allows, and what is read out of answers that follow it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pydantic
import pytest
from tests.unit.worker.test_generation import Engine
from tests.unit.worker.tool_models import TEMPLATES, tool_tokenizer

from plimsoll_worker.engine.guide import Grammars
from plimsoll_worker.engine.sequence import FinishReason, SamplingParams
from plimsoll_worker.loading.chat_template import ChatTemplate
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.form import form_of
from plimsoll_worker.server.generation import Generation
from plimsoll_worker.server.messages import Limits, Opened
from plimsoll_worker.server.metrics import Metrics
from plimsoll_worker.server.prompts import Ask
from plimsoll_worker.server.protocol import ChatRequest
from plimsoll_worker.server.tool_calls import CallReader
from plimsoll_worker.server.tool_families import FAMILIES, calling_of

EOS = frozenset({2})
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "at": {"$ref": "#/$defs/at"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"at": {"type": "object", "properties": {"hour": {"type": "integer"}}}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now", "description": "What time it is"}},
]
OSLO = '{"name": "weather", "arguments": {"city": "Os{l\\"}o", "at": {"hour": 5}}}'
NOW = '{"name": "now", "arguments": {}}'
OSLO_ARGUMENTS = OSLO[33:-1]


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def mistral(*calls: str) -> str:
    return f"[TOOL_CALLS][{', '.join(calls)}]"


def llama(call: str) -> str:
    return call.replace('"arguments"', '"parameters"')


def request(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, **fields}
    return ChatRequest.model_validate_json(json.dumps(body))


async def accepted(tokenizer: Tokenizer, family: str, text: str, **fields: Any) -> bool:
    """Whether an answer to a request with `fields` may be `text`, and end there."""
    language = tool_tokenizer(tokenizer, family)
    form = await form_of(request(**fields), calling_of(language, EOS), EOS)
    assert form.grammar is not None
    guide = Grammars(language, vocabulary=49152, eos=EOS).guide(form.grammar)
    tokens = language.encode(text, add_special_tokens=False)
    for token in [*tokens, *EOS]:
        if not guide.follow()[token // 8] >> token % 8 & 1:
            return False
        guide.follow([token])
    return True


NAMED = {"tool_choice": {"type": "function", "function": {"name": "now"}}}
REQUIRED = {"tool_choice": "required"}
ONE = {"parallel_tool_calls": False}
AS_JSON = {"response_format": {"type": "json_object"}}
ALLOWED: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "hermes text": ("Hermes", {}, "It rains {a lot}.", True),
    "hermes call": ("Hermes", {}, hermes(OSLO), True),
    "hermes text and calls": ("Hermes", {}, f"Let me see.\n{hermes(OSLO, NOW)}\nDone.", True),
    "hermes unknown function": ("Hermes", {}, hermes('{"name": "rm", "arguments": {}}'), False),
    "hermes wrong arguments": ("Hermes", {}, hermes('{"name": "weather", "arguments": {}}'), False),
    "hermes wrong inner arguments": ("Hermes", {}, hermes(OSLO.replace("5", '"x"')), False),
    "hermes half": ("Hermes", {}, "<tool_call>\n", False),
    "hermes one": ("Hermes", ONE, hermes(OSLO), True),
    "hermes not two": ("Hermes", ONE, hermes(OSLO, NOW), False),
    "hermes required": ("Hermes", REQUIRED, hermes(OSLO, NOW), True),
    "hermes required one": ("Hermes", {**REQUIRED, **ONE}, hermes(OSLO, NOW), False),
    "hermes required, text": ("Hermes", REQUIRED, "No.", False),
    "hermes named": ("Hermes", NAMED, hermes(NOW), True),
    "hermes another than named": ("Hermes", NAMED, hermes(OSLO), False),
    "hermes JSON or calls": ("Hermes", AS_JSON, hermes(OSLO), True),
    "hermes JSON": ("Hermes", AS_JSON, '{"a": 1}', True),
    "hermes neither JSON nor calls": ("Hermes", AS_JSON, "It rains.", False),
    "llama text": ("Llama 3.1", {}, "It rains {a lot}.", True),
    "llama nothing": ("Llama 3.1", {}, "", True),
    "llama call": ("Llama 3.1", {}, llama(OSLO), True),
    "llama not two": ("Llama 3.1", {}, llama(OSLO) + llama(NOW), False),
    "llama other JSON": ("Llama 3.1", {}, '{"a": 1}', False),
    "llama required": ("Llama 3.1", REQUIRED, llama(NOW), True),
    "llama required, text": ("Llama 3.1", REQUIRED, "No.", False),
    "llama named": ("Llama 3.1", NAMED, llama(OSLO), False),
    "mistral text": ("Mistral", {}, "It rains [a lot].", True),
    "mistral calls": ("Mistral", {}, mistral(OSLO, NOW), True),
    "mistral text and a call": ("Mistral", {}, "Well. " + mistral(OSLO), True),
    "mistral no calls": ("Mistral", {}, mistral(), False),
    "mistral one": ("Mistral", ONE, mistral(OSLO, NOW), False),
    "mistral required": ("Mistral", REQUIRED, mistral(NOW), True),
    "mistral required, text": ("Mistral", REQUIRED, "No.", False),
    "mistral JSON": ("Mistral", AS_JSON, '{"a": 1}', True),
}


@pytest.mark.parametrize(("family", "fields", "text", "allowed"), ALLOWED.values(), ids=ALLOWED.keys())
async def test_an_answer_calls_as_its_model_does_and_as_it_was_asked(
    family: str, fields: dict[str, Any], text: str, allowed: bool, tokenizer: Tokenizer
) -> None:
    assert await accepted(tokenizer, family, text, **fields) is allowed


CALLS = [("weather", OSLO_ARGUMENTS), ("now", "{}")]
READ: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "text": ("Hermes", "It is < 5 <b>now</b> \n", "It is < 5 <b>now</b> \n", []),
    "one": ("Hermes", hermes(OSLO), "", CALLS[:1]),
    "two": ("Hermes", f"Let me see.\n\n{hermes(OSLO, NOW)}\n", "Let me see.", CALLS),
    "words behind": ("Hermes", f"{hermes(NOW)}\nDone.", "\nDone.", CALLS[1:]),
    "cut in a name": ("Hermes", '<tool_call>\n{"name": "wea', '<tool_call>\n{"name": "wea', []),
    "cut in arguments": ("Hermes", hermes(OSLO)[:-20], "", [("weather", OSLO_ARGUMENTS[:-6])]),
    "cut in a mark": ("Hermes", "Hm <tool", "Hm <tool", []),
    "blanks in a call": (
        "Hermes",
        '<tool_call>{ "name" :"now",\n"arguments":  {} }</tool_call>',
        "",
        CALLS[1:],
    ),
    "llama text": (
        "Llama 3.1",
        'So: {"name": "now", "parameters": {}}',
        'So: {"name": "now", "parameters": {}}',
        [],
    ),
    "llama call": ("Llama 3.1", llama(OSLO), "", CALLS[:1]),
    "mistral text": ("Mistral", "One [two]", "One [two]", []),
    "mistral calls": ("Mistral", "Well. " + mistral(OSLO, NOW), "Well.", CALLS),
}


@pytest.mark.parametrize("letters", [1, 7, 10_000])
@pytest.mark.parametrize(("family", "text", "said", "called"), READ.values(), ids=READ.keys())
def test_calls_are_read_however_the_answer_comes(
    family: str, text: str, said: str, called: list[tuple[str, str]], letters: int
) -> None:
    reader = CallReader(next(each for each in FAMILIES if each.name == family))
    heard, pieces = "", []
    for first in range(0, len(text), letters):
        more, news = reader.push(text[first : first + letters])
        heard += more
        pieces += news
    heard += reader.flush()
    names = [piece.name for piece in pieces if piece.name is not None]
    arguments = [
        "".join(each.arguments for each in pieces if each.index == index) for index in range(len(names))
    ]
    assert heard == said
    assert list(zip(names, arguments, strict=True)) == called
    assert len({piece.id for piece in pieces if piece.id is not None}) == len(called)


TAUGHT: dict[str, tuple[str | None, str]] = {
    "nothing": (None, "{{ messages }}"),
    "Qwen 2.5": (
        "Hermes",
        r"""{{- "within <tool_call></tool_call> XML tags:\n<tool_call>\n" }}
        {{- "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}""",
    ),
    "Qwen3-Coder": (
        None,
        r"""{{- "<tool_call>\n<function=name>\n<parameter=a>\n</function>\n</tool_call> arguments" }}""",
    ),
    "GLM 4.5": (None, r"""{{ "<tool_call>{name}\n<arg_key>{key}</arg_key>\n</tool_call> arguments" }}"""),
    "Llama 3.1": (
        "Llama 3.1",
        r"""{{- "Environment: ipython\n" }}{{- "<|python_tag|>" }}
        {{- 'in the format {"name": function name, "parameters": dictionary of name and value}.' }}""",
    ),
    "Mistral v3": ("Mistral", r"""{{- "[AVAILABLE_TOOLS] [" }}{{- "[TOOL_CALLS] [" }}"""),
    "Mistral v11": (None, r"""{{- "[AVAILABLE_TOOLS]" }}{{- "[TOOL_CALLS]" + name + "[ARGS]" }}"""),
}


@pytest.mark.parametrize(("family", "source"), TAUGHT.values(), ids=TAUGHT.keys())
def test_a_family_is_known_by_what_its_template_writes(
    family: str | None, source: str, tokenizer: Tokenizer
) -> None:
    language = tool_tokenizer(tokenizer, family or "Hermes")
    language = dataclasses.replace(language, chat_template=ChatTemplate(source, {}))
    calling = calling_of(language, EOS)
    assert (calling and calling.family.name) == family


def test_marks_that_are_no_tokens_are_not_looked_for(tokenizer: Tokenizer) -> None:
    plain = dataclasses.replace(tokenizer, chat_template=ChatTemplate(TEMPLATES["Hermes"], {}))
    assert calling_of(plain, EOS) is None


def tool(**function: Any) -> list[dict[str, Any]]:
    return [TOOLS[1], {"type": "function", "function": {"name": "f", **function}}]


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no object": (
        "Hermes",
        {"tools": tool(parameters={"type": "string"})},
        "expected 'object'",
        "parameters",
    ),
    "keyword": (
        "Hermes",
        {"tools": tool(parameters={"type": "object", "uniqueItems": True, "not": {}}, strict=True)},
        "Unimplemented keys",
        "tools.1.function.parameters",
    ),
    "endless": (
        "Hermes",
        {"tools": tool(parameters={"type": "object", "properties": {"f": {"$ref": "#"}}, "required": ["f"]})},
        "without end",
        "tools.1.function.parameters",
    ),
    "JSON beside JSON calls": ("Llama 3.1", AS_JSON, "do not go together", "response_format"),
    "shortest": ("Hermes", {"min_tokens": 2}, "min_tokens and tools", "min_tokens"),
}


@pytest.mark.parametrize(("family", "fields", "message", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_tools_that_cannot_be_offered_are_refused_by_their_place(
    family: str, fields: dict[str, Any], message: str, param: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        await form_of(request(**fields), calling_of(tool_tokenizer(tokenizer, family), EOS), EOS)
    assert caught.value.status == 400
    assert param in caught.value.body["error"]["param"]  # type: ignore[operator]


UNCHECKED: dict[str, tuple[dict[str, Any], str]] = {
    "two of one name": ({"tools": [TOOLS[0], TOOLS[0]]}, "two tools have one name"),
    "strange name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
    "unknown choice": (
        {"tool_choice": {"type": "function", "function": {"name": "rm"}}},
        "'rm' is none of the tools",
    ),
    "arguments": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{"}}
                    ],
                }
            ]
        },
        "expected a JSON object in a string",
    ),
    "calls of a user": (
        {
            "messages": [
                {
                    "role": "user",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
                    ],
                }
            ]
        },
        "tool_calls come from the role 'assistant'",
    ),
}


@pytest.mark.parametrize(("fields", "message"), UNCHECKED.values(), ids=UNCHECKED.keys())
def test_what_makes_no_sense_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        request(**fields)


async def test_without_a_choice_of_tools_there_is_no_grammar(tokenizer: Tokenizer) -> None:
    calling = calling_of(tool_tokenizer(tokenizer, "Hermes"), EOS)
    form = await form_of(request(tool_choice="none"), calling, EOS)
    assert (form.grammar, form.tools, form.calling) == (None, None, None)


async def test_marks_that_texts_do_not_show_are_read_all_the_same(tokenizer: Tokenizer) -> None:
    language = tool_tokenizer(tokenizer, "Mistral")
    text = "Well. " + mistral(NOW)
    tokens = language.encode(text, add_special_tokens=False)
    assert "[TOOL_CALLS]" not in language.decode(tokens)
    engine = Engine()
    limits = Limits(context=99, vocabulary=9, eos_token_ids=EOS, sequences=8)
    asked = Generation(
        engine,  # type: ignore[arg-type]
        language,
        Metrics("m", Opened(limits=limits, block_size=16, blocks=4)),
        asks=[Ask([5], SamplingParams(max_tokens=99), first_of_prompt=True)],
        most=8,
        stop=(),
        priority=0,
        cache_salt="",
        calling=calling_of(language, EOS),
    )
    engine.say("s0", *tokens, 2, finish=FinishReason.STOP)
    (delta,) = [delta async for delta in asked.deltas()]
    assert (delta.text, delta.finish_reason) == ("Well.", "tool_calls")
    assert [(call.name, call.arguments) for call in delta.calls] == [("now", ""), (None, "{}")]
    assert delta.calls[0].id is not None
    assert len(delta.calls[0].id) == 9
