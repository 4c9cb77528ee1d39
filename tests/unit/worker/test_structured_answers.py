"""`response_format` of the OpenAI API, spoken by the real client to a running worker."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from tests.unit.worker.processes import WorkerProcess, wait_for

CITY: list[Any] = [{"role": "user", "content": "Tell me about Paris as JSON."}]


class Country(pydantic.BaseModel):
    """Nested, so that its schema refers to itself."""

    code: Literal["FR", "DE"]


class City(pydantic.BaseModel):
    """What the model is asked for."""

    name: Literal["Paris", "Berlin"]
    country: Country
    capital: bool


def by_schema(schema: object, **more: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


SHORT = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(worker: WorkerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{worker.url}/v1", api_key="any", max_retries=0, timeout=120)


def test_an_answer_parses_into_a_pydantic_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2", messages=CITY, response_format=City, temperature=0, max_tokens=128
    )
    (choice,) = answer.choices
    assert isinstance(choice.message.parsed, City)
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_parses_too(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="smollm2", messages=CITY, response_format=City, temperature=0, max_tokens=128
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, City)
    assert len(pieces) > 1
    assert City.model_validate_json("".join(pieces)) == parsed


def test_every_one_of_n_hot_answers_follows_the_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=CITY,
        n=4,
        temperature=2,
        seed=3,
        max_tokens=200,
        logprobs=True,
        top_logprobs=2,
        response_format=by_schema(SHORT, strict=True),  # type: ignore[arg-type]
    )
    for choice in answer.choices:
        told = json.loads(choice.message.content or "")
        assert told.keys() == {"a", "b"}
        assert told["b"] in "xy"
        assert choice.logprobs is not None
        assert "".join(entry.token for entry in choice.logprobs.content or []) == choice.message.content


def test_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=CITY,
        temperature=0,
        max_tokens=8,
        response_format={"type": "json_object"},
        logit_bias={},
    )
    assert (answer.choices[0].message.content or "").startswith("{")


def test_max_tokens_and_stop_strings_cut_json_too(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "messages": CITY, "response_format": by_schema(SHORT), "temperature": 0}
    cut = client.chat.completions.create(**asked, max_tokens=2).choices[0]
    assert cut.finish_reason == "length"
    stopped = client.chat.completions.create(**asked, stop='"b"').choices[0]
    assert stopped.finish_reason == "stop"
    assert '"a"' in (stopped.message.content or "")
    assert '"b"' not in (stopped.message.content or "")


def test_answers_with_and_without_a_schema_go_side_by_side(client: openai.OpenAI) -> None:
    france: Any = [{"role": "user", "content": "What is the capital of France?"}]

    def ask(number: int) -> str | None:
        plain = number % 2
        more: Any = {} if plain else {"response_format": by_schema(SHORT)}
        answer = client.chat.completions.create(
            model="smollm2", messages=france if plain else CITY, temperature=0, **more
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert answers[1::2] == ["The capital of France is Paris."] * 4
    assert len({json.dumps(json.loads(text or "")) for text in answers[::2]}) == 1


LOOP = {"$ref": "#/$defs/node", "$defs": {"node": {"$ref": "#/$defs/node"}}}
ENDLESS = {
    "type": "object",
    "properties": {"next": {"$ref": "#"}},
    "required": ["next"],
    "additionalProperties": False,
}
REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "type": ({"response_format": {"type": "xml"}}, "'text', 'json_object' or 'json_schema'", "type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "json_schema", "response_format"),
    "unknown field": (
        {"response_format": by_schema(SHORT, scheme={})},
        "not known to this engine",
        "response_format.json_schema.scheme",
    ),
    "keyword": (
        {"response_format": by_schema({"type": "object", "properties": {"a": {"not": {}}}}, strict=True)},
        '"not"] (at /properties/a)',
        "response_format.json_schema.schema",
    ),
    "pattern": (
        {"response_format": by_schema({"anyOf": [{"type": "string", "pattern": "(?=x)"}]})},
        "(at /anyOf/0)",
        "response_format.json_schema.schema",
    ),
    "contradiction": (
        {"response_format": by_schema({"allOf": [{"type": "string"}, {"type": "integer"}]})},
        "Unsatisfiable",
        "response_format.json_schema.schema",
    ),
    "abroad": (
        {"response_format": by_schema({"$ref": "http://example.com/schema"})},
        "http://example.com/schema",
        "response_format.json_schema.schema",
    ),
    "loop": ({"response_format": by_schema(LOOP)}, "without end", "response_format.json_schema.schema"),
    "endless": ({"response_format": by_schema(ENDLESS)}, "without end", "response_format.json_schema.schema"),
    "too large": (
        {"response_format": by_schema({"enum": [f"value {number}" for number in range(20_000)]})},
        "131072 are allowed",
        None,
    ),
    "end ignored": (
        {"response_format": {"type": "json_object"}, "ignore_eos": True},
        "do not go together",
        "ignore_eos",
    ),
    "shortest": (
        {"response_format": {"type": "json_object"}, "min_tokens": 3},
        "do not go together",
        "min_tokens",
    ),
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "no way to call functions that this engine knows",
        "tools",
    ),
    "choice without tools": ({"tool_choice": "required"}, "only allowed with tools", None),
    "strange choice": ({"tool_choice": {"type": "any"}}, '"none", "auto", "required"', "tool_choice"),
    "nothing said": ({"messages": [{"role": "user", "content": None}]}, "content is missing", "messages.0"),
    "outcome of nothing": (
        {"messages": [{"role": "tool", "content": "5"}]},
        "tool_call_id belongs",
        "messages.0",
    ),
}


@pytest.mark.parametrize(("fields", "message", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_answer_can_follow_is_refused_by_its_place(
    fields: dict[str, Any], message: str, param: str | None, worker: WorkerProcess
) -> None:
    body = {"model": "smollm2", "messages": CITY, "max_tokens": 16, **fields}
    answer = httpx.post(f"{worker.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["param"] or "").endswith(param or "")
    assert error["type"] == "invalid_request_error"


def test_what_cannot_be_held_to_is_left_out_unless_strict(client: openai.OpenAI) -> None:
    schema = {**SHORT, "properties": {**SHORT["properties"], "b": {"enum": ["x"], "not": {"const": "y"}}}}  # type: ignore[dict-item]
    answer = client.chat.completions.create(
        model="smollm2",
        messages=CITY,
        temperature=0,
        response_format=by_schema(schema),  # type: ignore[arg-type]
    )
    assert json.loads(answer.choices[0].message.content or "")["b"] == "x"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_dead_end_is_an_error_and_the_worker_goes_on(stream: bool, worker: WorkerProcess) -> None:
    many = {
        "type": "object",
        "properties": {f"p{number}": {"type": "string"} for number in range(1500)},
        "required": ["p1499"],
    }
    body = {"model": "smollm2", "messages": CITY, "response_format": by_schema(many), "stream": stream}
    answer = httpx.post(f"{worker.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == (200 if stream else 400)
    last = answer.text.strip().rsplit("\n\n", 1)[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "grammar_dead_end"
    assert worker.metric("vllm:num_requests_running") == 0
    assert worker.metric("vllm:kv_cache_usage_perc") == 0


def test_clients_that_vanish_while_their_schema_is_followed_leave_nothing(worker: WorkerProcess) -> None:
    body = {"model": "smollm2", "messages": CITY, "response_format": {"type": "json_object"}, "stream": True}
    for number in range(12):
        response_format = {"type": "json_object"} if number % 3 else by_schema({"enum": ["a" * 9000]})
        asked = {**body, "response_format": response_format}
        with httpx.Client(timeout=60) as client:
            request = client.build_request("POST", f"{worker.url}/v1/chat/completions", json=asked)
            response = client.send(request, stream=True)
            assert response.status_code == 200
            if number % 2:
                next(response.iter_lines())
            response.close()
    wait_for(lambda: worker.metric("vllm:num_requests_running") == 0, 60, "nothing runs")
    assert worker.metric("vllm:num_requests_waiting") == 0
    assert worker.metric("vllm:kv_cache_usage_perc") == 0
