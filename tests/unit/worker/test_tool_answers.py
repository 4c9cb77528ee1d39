"""Tools of the OpenAI API, spoken by the real client to a running worker whose template knows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from tests.unit.worker.processes import WorkerProcess, smollm2_launch
from tests.unit.worker.tool_models import tool_folder, tool_tokenizer

from plimsoll_worker.loading.tokenizer import Tokenizer

ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]


class Now(pydantic.BaseModel):
    """Asks what time it is."""


class Weather(pydantic.BaseModel):
    """Asks for a place's weather."""

    city: str = pydantic.Field(max_length=12)
    days: int = pydantic.Field(ge=1, le=9)


TOOLS: list[Any] = [
    openai.pydantic_function_tool(Weather, name="weather"),
    openai.pydantic_function_tool(Now, name="now"),
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def worker(
    smollm2_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    folder = tool_folder(smollm2_folder, tokenizer, "Hermes", tmp_path_factory.mktemp("hermes"))
    with WorkerProcess(smollm2_launch(folder), tmp_path_factory.mktemp("worker")) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def client(worker: WorkerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{worker.url}/v1", api_key="any", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def mark(tokenizer: Tokenizer) -> str:
    """The token that opens a call, as a bias names it."""
    return str(tool_tokenizer(tokenizer, "Hermes").backend.token_to_id("<tool_call>"))


def test_a_named_function_is_called_with_arguments_that_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2", messages=ASKED, tools=TOOLS, tool_choice=NAMED, temperature=0, max_tokens=64
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert (call.type, call.function.name) == ("function", "weather")
    assert isinstance(call.function.parsed_arguments, Weather)
    assert call.id.startswith("call_")


def test_a_streamed_call_is_the_same_call_in_pieces(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "smollm2",
        "messages": ASKED,
        "tools": TOOLS,
        "tool_choice": NAMED,
        "temperature": 0,
        "max_tokens": 64,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert whole is not None
    with client.chat.completions.stream(**asked) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        (choice,) = stream.get_final_completion().choices
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert call.function.arguments == whole[0].function.arguments  # type: ignore[union-attr]
    assert isinstance(call.function.parsed_arguments, Weather)
    assert len(pieces) > 1


def test_a_model_that_must_call_does_whatever_its_temperature(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=ASKED,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        n=3,
        seed=5,
        temperature=1.5,
        max_tokens=128,
    )
    for choice in answer.choices:
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert arguments == {} if call.function.name == "now" else Weather.model_validate(arguments)
        assert choice.finish_reason == "tool_calls"


def test_a_model_that_may_call_talks_or_calls(client: openai.OpenAI, mark: str) -> None:
    asked: Any = {"model": "smollm2", "messages": ASKED, "tools": TOOLS, "temperature": 0, "max_tokens": 64}
    talk = client.chat.completions.create(**asked, logit_bias={mark: -100}).choices[0]
    assert talk.message.tool_calls is None
    assert talk.message.content
    assert talk.finish_reason in ("stop", "length")
    call = client.chat.completions.create(**asked, logit_bias={mark: 100}, parallel_tool_calls=False).choices[
        0
    ]
    assert len(call.message.tool_calls or []) == 1
    assert call.finish_reason == "tool_calls"


def test_the_model_is_shown_its_tools_unless_it_must_not_call(client: openai.OpenAI) -> None:
    def prompt_tokens(**fields: Any) -> int:
        answer = client.chat.completions.create(model="smollm2", messages=ASKED, max_tokens=1, **fields)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    without = prompt_tokens()
    assert prompt_tokens(tools=TOOLS) > without
    assert prompt_tokens(tools=TOOLS, tool_choice="none") == without


def test_an_outcome_goes_back_to_the_model(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "tools": TOOLS, "temperature": 0, "max_tokens": 64}
    called = client.chat.completions.create(messages=ASKED, tool_choice=NAMED, **asked).choices[0].message
    (call,) = called.tool_calls or []
    outcome = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
    answer = client.chat.completions.create(messages=[*ASKED, called, outcome], tool_choice="auto", **asked)
    assert answer.usage is not None
    assert answer.choices[0].message.role == "assistant"
    alone = client.chat.completions.create(messages=ASKED, tool_choice="auto", **asked)
    assert alone.usage is not None
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + 20, "the call and its outcome are told"
