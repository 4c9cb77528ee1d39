"""Sampling and streaming parameters of the OpenAI API, spoken by the real client to a running worker."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from tests.unit.worker.processes import WorkerProcess

from plimsoll_worker.loading.tokenizer import Tokenizer

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(worker: WorkerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{worker.url}/v1", api_key="any", max_retries=0, timeout=60)


def test_chat_tells_log_probabilities(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    tokens = [entry.token for entry in choice.logprobs.content]
    assert "".join(tokens) == choice.message.content == "The capital of France is Paris."
    for entry in choice.logprobs.content:
        assert entry.bytes == list(entry.token.encode())
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the likeliest"
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert values[0] == entry.logprob <= 0
        assert len(values) == 3


def test_a_streamed_chat_tells_the_same_log_probabilities(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "messages": FRANCE, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert whole is not None
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.content or []]
    assert all(entry.top_logprobs == [] for entry in streamed)


def test_completions_tell_log_probabilities_with_offsets(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(
        model="smollm2", prompt="1 2 3 4", max_tokens=6, temperature=0, logprobs=2
    ).choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.top_logprobs is not None
    assert told.token_logprobs is not None
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == [len("".join(told.tokens[:index])) for index in range(6)]
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 2
        assert top[token] == logprob == max(top.values())


def test_several_answers_are_those_of_seeds_in_a_row(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 1.2}
    answer = client.completions.create(**asked, n=3, seed=11)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    alone = [client.completions.create(**asked, seed=11 + index).choices[0].text for index in range(3)]
    assert [choice.text for choice in answer.choices] == alone
    assert len(set(alone)) == 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 24)


def test_several_answers_of_a_chat_stream_side_by_side(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smollm2",
        messages=FRANCE,
        n=2,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["The capital of France is Paris."] * 2
    assert [chunk.choices[0].index for chunk in chunks[:2]] == [0, 1]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (37, 16)


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    prompts = ["The capital of France is", "1 2 3 4", "Water boils at"]
    asked: Any = {"model": "smollm2", "max_tokens": 5, "temperature": 0}
    alone = [client.completions.create(**asked, prompt=prompt).choices[0].text for prompt in prompts]
    together = client.completions.create(**asked, prompt=prompts)
    by_ids = client.completions.create(**asked, prompt=[tokenizer.encode(prompt) for prompt in prompts])
    assert [choice.text for choice in together.choices] == alone
    assert [choice.text for choice in by_ids.choices] == alone
    twice = client.completions.create(**asked, prompt=prompts[:2], n=2)
    assert [choice.text for choice in twice.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert twice.usage is not None
    assert twice.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in prompts[:2])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_echo_begins_with_the_prompt(stream: bool, client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "prompt": "1 2 3 4", "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(**asked).choices[0].text
    echoed = client.completions.create(**asked, echo=True, stream=stream)
    answers = list(echoed) if stream else [echoed]
    assert "".join(answer.choices[0].text for answer in answers) == "1 2 3 4" + plain


def test_a_bias_forbids_and_forces_tokens(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    (paris,) = tokenizer.encode(" Paris")
    (seven,) = tokenizer.encode("7")
    forbidden = client.chat.completions.create(
        model="smollm2", messages=FRANCE, temperature=0, max_tokens=12, logit_bias={str(paris): -100}
    )
    assert "Paris" not in (forbidden.choices[0].message.content or "")
    forced = client.completions.create(
        model="smollm2", prompt="1 2", temperature=0, max_tokens=3, logit_bias={str(seven): 100}
    )
    assert forced.choices[0].text == "777"


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_a_penalty_outweighs_a_lead_of_one(name: str, client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """Biased so that the first token wins by 1 also the second time: a penalty of 2 gives it to another."""
    asked: Any = {"model": "smollm2", "prompt": [100, 200, 300], "temperature": 0, "logprobs": 2}
    first = client.completions.create(**asked, max_tokens=1).choices[0].logprobs
    assert first is not None
    (word,) = first.tokens or []
    (again,) = tokenizer.encode(word, add_special_tokens=False)
    forced: Any = {**asked, "max_tokens": 2, "logit_bias": {str(again): 100}}
    told = client.completions.create(**forced).choices[0].logprobs
    assert told is not None
    assert told.tokens == [word, word]
    top = (told.top_logprobs or [])[1]
    other, likeliest = next((token, value) for token, value in top.items() if token != word)
    (instead,) = tokenizer.encode(other, add_special_tokens=False)
    forced["logit_bias"][str(instead)] = min(100.0, 100 + (told.token_logprobs or [])[1] - likeliest - 1)
    assert client.completions.create(**forced).choices[0].text == word + word
    penalised = client.completions.create(**forced, extra_body={name: 2.0})
    assert penalised.choices[0].text == word + other


@pytest.mark.parametrize("only", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.000001}], ids=str)
def test_a_filter_that_leaves_one_token_is_greedy(only: dict[str, Any], client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 8}
    greedy = client.completions.create(**asked, temperature=0).choices[0].text
    filtered = client.completions.create(**asked, temperature=2.0, extra_body=only).choices[0].text
    assert filtered == greedy


def test_an_answer_is_not_ended_before_its_least_length(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "messages": FRANCE, "temperature": 0, "max_tokens": 20}
    long = client.chat.completions.create(**asked, extra_body={"min_tokens": 12})
    assert long.usage is not None
    assert long.usage.completion_tokens >= 12
    stopped = client.chat.completions.create(**asked, stop=" Paris", extra_body={"min_tokens": 7})
    assert (stopped.choices[0].message.content or "").startswith("The capital of France is Paris")


def test_usage_may_come_with_every_event(worker: WorkerProcess) -> None:
    body = {
        "model": "smollm2",
        "prompt": "1 2 3",
        "max_tokens": 3,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    text = httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
    told = [event["usage"]["completion_tokens"] for event in events]
    assert told == sorted(told)
    assert told[-2:] == [3, 3]
    assert events[-1]["choices"] == []


def test_a_salt_keeps_prefixes_apart(worker: WorkerProcess) -> None:
    def cached(salt: str | None) -> int:
        body = {
            "model": "smollm2",
            "prompt": [number + 700 for number in range(64)],
            "max_tokens": 1,
            "cache_salt": salt,
            "priority": -1,
        }
        usage = httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert [cached("a"), cached("b"), cached("a"), cached(None)] == [0, 0, 48, 0]


def test_a_request_keeps_its_id(worker: WorkerProcess) -> None:
    body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 1}
    answer = httpx.post(
        f"{worker.url}/v1/completions", json=body, headers={"X-Request-Id": "mine"}, timeout=60
    )
    assert answer.headers["X-Request-Id"] == "mine"
    refused = httpx.post(f"{worker.url}/v1/completions", json={}, headers={"X-Request-Id": "x"}, timeout=60)
    assert (refused.status_code, refused.headers["X-Request-Id"]) == (400, "x")
    assert len(httpx.get(f"{worker.url}/v1/models", timeout=10).headers["X-Request-Id"]) == 32
