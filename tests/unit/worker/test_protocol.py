"""What clients may send, checked without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from plimsoll_worker.server.protocol import ChatRequest, CompletionRequest, GenerationRequest

MANY = 10_000
SAYS_HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
PROMPT: dict[str, Any] = {"model": "m", "prompt": "Hi"}


def faults(kind: type[GenerationRequest], body: object) -> list[Any]:
    """What pydantic has against a body."""
    with pytest.raises(ValidationError) as found:
        kind.model_validate_json(json.dumps(body))
    assert found.value.error_count() <= 4
    return [(".".join(map(str, error["loc"])), error["msg"]) for error in found.value.errors()]


STRANGE_MANY: dict[str, tuple[type[GenerationRequest], dict[str, Any], str]] = {
    "messages": (ChatRequest, {**SAYS_HI, "messages": [0] * MANY}, "messages.0"),
    "parts": (
        ChatRequest,
        {**SAYS_HI, "messages": [{"role": "user", "content": [0] * MANY}]},
        "messages.0.content.str",
    ),
    "calls": (
        ChatRequest,
        {**SAYS_HI, "messages": [{"role": "assistant", "tool_calls": [0] * MANY}]},
        "messages.0.tool_calls.0",
    ),
    "tools": (ChatRequest, {**SAYS_HI, "tools": [0] * MANY}, "tools"),
    "stops": (ChatRequest, {**SAYS_HI, "stop": [0] * MANY}, "stop"),
    "stop ids": (ChatRequest, {**SAYS_HI, "stop_token_ids": [""] * MANY}, "stop_token_ids.0"),
    "biases": (
        ChatRequest,
        {**SAYS_HI, "logit_bias": {"3": 1, **{str(token): "much" for token in range(5, MANY)}}},
        "logit_bias.5",
    ),
    "unknown fields": (ChatRequest, {**SAYS_HI, **{f"x{at}": 0 for at in range(MANY)}}, "x0"),
    "unknown fields of a message": (
        ChatRequest,
        {**SAYS_HI, "messages": [{"role": "user", "content": "", **{f"x{at}": 0 for at in range(MANY)}}]},
        "messages.0.x0",
    ),
    "prompts": (CompletionRequest, {**PROMPT, "prompt": [[""] * 100] * 100}, "prompt.str"),
}


@pytest.mark.parametrize(("kind", "body", "place"), STRANGE_MANY.values(), ids=STRANGE_MANY.keys())
def test_many_faults_cost_no_more_than_one(
    kind: type[GenerationRequest], body: dict[str, Any], place: str
) -> None:
    assert faults(kind, body)[0][0] == place


def test_a_key_of_a_bias_that_is_no_number_of_a_token_is_told_shortly() -> None:
    body = {**PROMPT, "logit_bias": {"9" * 5000: 1}}
    ((place, message),) = faults(CompletionRequest, body)
    assert place == "logit_bias"
    assert message == f"Value error, found the key '{'9' * 18}', expected token ids"


def test_two_lengths_that_differ_are_refused() -> None:
    ((_, message),) = faults(ChatRequest, {**SAYS_HI, "max_tokens": 5, "max_completion_tokens": 6})
    assert "max_tokens is 5 and max_completion_tokens is 6; send one of them" in message
    ChatRequest.model_validate({**SAYS_HI, "max_tokens": 5, "max_completion_tokens": 5})


def test_what_is_dropped_or_neutral_hides_no_other_field() -> None:
    body = {**PROMPT, "user": "me", "store": True, "suffix": "", "best_of": 5, "x": 1, "y": 2}
    ((_, message),) = faults(CompletionRequest, body)
    assert "best_of is not supported at this endpoint" in message
    assert faults(CompletionRequest, {**body, "best_of": 1})[0][0] == "x"
    assert faults(ChatRequest, {**SAYS_HI, "user": "me", "functions": [{}], "x": 1})[0][1].startswith(
        "Value error, functions is not supported"
    )
