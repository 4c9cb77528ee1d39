"""The OpenAI API of a running worker, spoken to by the real `openai` client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.unit.worker.conftest import ANSWER_TOKENS, PROMPTS, ReferenceAnswer
from tests.unit.worker.processes import MIB, WorkerProcess, smollm2_launch, wait_for

from plimsoll_worker.launch import ENGINE_VERSION, Device, MemoryCategory, Report, StartupStage
from plimsoll_worker.loading.tokenizer import Tokenizer

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(worker: WorkerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{worker.url}/v1", api_key="any", max_retries=0, timeout=60)


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0)  # type: ignore[arg-type]
    assert answer.object == "chat.completion"
    assert answer.model == "smollm2"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "The capital of France is Paris."
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)
    assert answer.usage.total_tokens == 45


def test_a_streamed_chat_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smollm2",
        messages=FRANCE,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "The capital of France is Paris."
    assert sum(map(bool, pieces)) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_usage_only_when_asked(worker: WorkerProcess) -> None:
    body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 2, "stream": True}
    text = httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).text
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert not any("usage" in json.loads(event) for event in events[:-1])


def test_completions_are_transformers_answers_also_when_many_come_at_once(
    client: openai.OpenAI, reference: tuple[ReferenceAnswer, ...], tokenizer: Tokenizer
) -> None:
    def complete(prompt: str) -> str:
        answer = client.completions.create(
            model="smollm2",
            prompt=prompt,
            max_tokens=24,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert answer.choices[0].finish_reason == "length"
        return answer.choices[0].text

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        answers = list(threads.map(complete, PROMPTS))
    assert len(PROMPTS) > 4, "more than run at a time, so that some wait"
    expected = [
        tokenizer.decode([*answer.prompt, *answer.tokens[:24]]).removeprefix(tokenizer.decode(answer.prompt))
        for answer in reference
    ]
    assert ANSWER_TOKENS >= 24
    assert answers == expected


def test_a_model_is_found_by_its_name(client: openai.OpenAI) -> None:
    assert client.models.retrieve("smollm2") == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="'org/else' is not served here"):
        client.models.retrieve("org/else")


def test_a_prompt_may_be_token_ids(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPTS[0])
    by_ids, by_text, by_list = (
        client.completions.create(model="smollm2", prompt=prompt, max_tokens=5, temperature=0).choices[0].text
        for prompt in (ids, PROMPTS[0], [PROMPTS[0]])
    )
    assert by_ids == by_text == by_list
    assert "Paris" in by_text


def test_completions_end_after_16_tokens_unless_told_otherwise(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm2", prompt="1 2 3 4", temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: openai.OpenAI) -> None:
    for stop in ("France is", ["nothing", " Par"], ["The capital of France is Paris"]):
        answer = client.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, stop=stop)  # type: ignore[call-overload]
        text = "The capital of France is Paris."
        first = min(text.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in text)
        assert answer.choices[0].message.content == text[:first]
        assert answer.choices[0].finish_reason == "stop"


def test_a_stop_token_ends_the_answer(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    (paris,) = tokenizer.encode(" Paris")
    answer = client.chat.completions.create(
        model="smollm2",
        messages=FRANCE,  # type: ignore[arg-type]
        temperature=0,
        extra_body={"stop_token_ids": [paris]},
    )
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_cuts_the_answer(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model="smollm2",
            messages=FRANCE,
            temperature=0,
            **{name: 3},  # type: ignore[call-overload]
        )
        assert answer.choices[0].message.content == "The capital of"
        assert answer.choices[0].finish_reason == "length"


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    def answer(seed: int) -> str:
        completion = client.completions.create(
            model="smollm2", prompt="Once upon a time", max_tokens=12, temperature=1.5, seed=seed
        )
        return completion.choices[0].text

    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in range(4)}) > 1


REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "format": ({"response_format": {"type": "json_object"}}, "response_format is not supported", None),
    "unknown": ({"temprature": 0}, "this field is not known", "temprature"),
    "type": ({"temperature": "hot"}, "valid number", "temperature"),
    "range": ({"top_p": 0}, "greater than 0", "top_p"),
    "stops": ({"stop": ["a", "b", "c", "d", "e"]}, "at most 4", "stop"),
    "no prompts": ({"prompt": []}, "prompt holds nothing", "prompt"),
    "empty": ({"prompt": ""}, "the prompt has no tokens", "prompt"),
    "ids": ({"prompt": [1, 99999999]}, "token id 99999999", "prompt"),
    "one of many empty": ({"prompt": ["Hi", ""]}, "the prompt has no tokens", "prompt"),
    "too many": ({"prompt": ["Hi"] * 37}, "this worker takes 36 at a time", "prompt"),
    "too many answers": ({"n": 37}, "this worker takes 36 at a time", "n"),
    "bias of no token": ({"logit_bias": {"Paris": 1}}, "expected token ids", "logit_bias"),
    "bias out of range": ({"logit_bias": {"99999999": 1}}, "token id 99999999", "logit_bias"),
    "bias too strong": ({"logit_bias": {"5": 101}}, "less than or equal to 100", "logit_bias.5"),
    "stop ids": ({"stop_token_ids": [99999999]}, "token id 99999999", "stop_token_ids"),
    "negative stop id": ({"stop_token_ids": [-1]}, "greater than or equal to 0", "stop_token_ids.0"),
    "penalty": ({"presence_penalty": 2.5}, "less than or equal to 2", "presence_penalty"),
    "repetition": ({"repetition_penalty": 0}, "greater than 0", "repetition_penalty"),
    "logprobs": ({"logprobs": 21}, "less than or equal to 20", "logprobs"),
    "echoed logprobs": ({"echo": True, "logprobs": 1}, "do not go together", None),
    "longest shortest": ({"min_tokens": 2}, "more than the 1 tokens an answer may have", "min_tokens"),
    "salt": ({"cache_salt": ""}, "at least 1 character", "cache_salt"),
    "stream options": ({"stream_options": {"include_usage": True}}, "only allowed with stream", None),
}


@pytest.mark.parametrize(("fields", "message", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_answered_is_refused_by_name(
    fields: dict[str, Any], message: str, param: str | None, worker: WorkerProcess
) -> None:
    body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 1, **fields}
    answer = httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_fields_that_ask_for_nothing_are_accepted(worker: WorkerProcess) -> None:
    neutral = {
        "best_of": 1,
        "suffix": None,
        "tools": [],
        "response_format": {"type": "text"},
        "user": "me",
    }
    body = {"model": "smollm2", "prompt": "Hi", "max_tokens": 1, **neutral}
    assert httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).status_code == 200


def test_an_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="serves 'smollm2'") as caught:
        client.completions.create(model="gpt-9", prompt="Hi")
    assert caught.value.code == "model_not_found"


def test_too_long_a_prompt_is_told_its_length(client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match="longest context of this deployment is 512 tokens"
    ) as caught:
        client.completions.create(model="smollm2", prompt="word " * 600)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="and 512 for the answer") as caught:
        client.completions.create(model="smollm2", prompt="word", max_tokens=512)
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_may_fill_the_context_to_its_end(client: openai.OpenAI) -> None:
    prompt = [100] * 500
    answer = client.completions.create(
        model="smollm2", prompt=prompt, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512


def test_errors_outside_the_api_have_its_form_too(worker: WorkerProcess) -> None:
    answer = httpx.get(f"{worker.url}/v1/nothing", timeout=10)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Not Found"
    json_type = {"Content-Type": "application/json"}
    answer = httpx.post(f"{worker.url}/v1/completions", content=b"{", headers=json_type, timeout=10)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_models_version_and_tokenize(
    worker: WorkerProcess, client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    (card,) = client.models.list().data
    assert card.id == "smollm2"
    assert httpx.get(f"{worker.url}/version", timeout=10).json() == {"version": ENGINE_VERSION}
    by_prompt = httpx.post(f"{worker.url}/tokenize", json={"prompt": "Hello"}, timeout=10).json()
    assert by_prompt == {"count": 1, "max_model_len": 512, "tokens": tokenizer.encode("Hello")}
    by_chat = httpx.post(f"{worker.url}/tokenize", json={"messages": FRANCE}, timeout=10).json()
    assert by_chat["count"] == 37
    assert httpx.post(f"{worker.url}/tokenize", json={}, timeout=10).status_code == 400


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_goes_away_leaves_no_blocks(stream: bool, worker: WorkerProcess) -> None:
    body = {"model": "smollm2", "prompt": "1 2 3", "max_tokens": 500, "ignore_eos": True, "stream": stream}
    generated = worker.metric("vllm:generation_tokens_total")
    with httpx.Client(timeout=httpx.Timeout(60, read=60 if stream else 1)) as impatient:
        request = impatient.build_request("POST", f"{worker.url}/v1/completions", json=body)
        if stream:
            response = impatient.send(request, stream=True)
            next(response.iter_lines())
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                impatient.send(request)
    wait_for(lambda: worker.metric("vllm:num_requests_running") == 0, 20, "the request is aborted")
    assert worker.metric("vllm:kv_cache_usage_perc") == 0
    assert worker.metric("vllm:generation_tokens_total") - generated < 400


def test_metrics_carry_vllms_names(worker: WorkerProcess, client: openai.OpenAI) -> None:
    before = worker.metric("vllm:prompt_tokens_total")
    client.completions.create(model="smollm2", prompt=[5, 6, 7], max_tokens=4, temperature=0)
    assert worker.metric("vllm:prompt_tokens_total") == before + 3
    text = httpx.get(f"{worker.url}/metrics", timeout=10).text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "generation_tokens_total",
        "num_preemptions_total",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_sum",
        "request_success_total",
        "request_time_per_output_token_seconds_count",
        "request_queue_time_seconds_count",
        "request_prefill_time_seconds_count",
        "request_decode_time_seconds_count",
        "request_prompt_tokens_count",
        "request_generation_tokens_count",
        "iteration_tokens_total_count",
        "prefix_cache_queries_total",
        "cache_config_info",
    ):
        assert f"\nvllm:{name}{{" in text, name
    assert 'block_size="16"' in text
    assert 'num_gpu_blocks="128"' in text
    steps, tokens = (worker.metric(f"vllm:iteration_tokens_total_{part}") for part in ("count", "sum"))
    assert tokens >= steps > 0


def test_the_report_agrees_with_the_launch(worker: WorkerProcess, smollm2: Path) -> None:
    launch = smollm2_launch(smollm2)
    text = httpx.get(f"http://127.0.0.1:{worker.admin_port}/report", timeout=10).text
    report = Report.model_validate_json(text)
    assert (report.plan_id, report.revision, report.stage) == (launch.plan_id, launch.revision, 0)
    assert (report.device, report.weights, report.kv_cache) == (Device.CPU, launch.weights, launch.kv_cache)
    assert (report.tensor_parallel, report.pipeline_parallel) == (1, 1)
    assert report.architecture == "llama"
    assert report.max_context_tokens == launch.max_context_tokens
    assert report.max_batched_tokens == launch.max_batched_tokens
    assert report.kv_cache_tokens == 4 * 512
    assert [stage.stage for stage in report.startup] == list(StartupStage)
    times = [stage.milliseconds for stage in report.startup]
    assert times == sorted(times)


def test_the_ledger_adds_up(worker: WorkerProcess, smollm2: Path) -> None:
    launch = smollm2_launch(smollm2)
    (device,) = Report.model_validate_json(
        httpx.get(f"http://127.0.0.1:{worker.admin_port}/report", timeout=10).text
    ).devices
    measured = device.bytes.model_dump(by_alias=True)
    assert set(measured) == set(MemoryCategory)
    assert sum(measured.values()) == device.used_bytes
    assert device.bytes.weights == launch.predicted.weights
    assert device.bytes.kv_cache == launch.kv_cache_bytes
    assert 0 < device.bytes.activations < 256 * MIB
    assert 100 * MIB < device.bytes.runtime < 1024 * MIB
    assert device.used_bytes < launch.line <= device.total_bytes
    assert device.product


def test_usage_and_metrics_tell_what_the_prefix_cache_had(worker: WorkerProcess) -> None:
    # 80 tokens: five blocks, the last of which is computed again for its logits.
    body = {"model": "smollm2", "prompt": [number + 300 for number in range(80)], "max_tokens": 1}
    hits = worker.metric("vllm:prefix_cache_hits_total")
    cached = [
        httpx.post(f"{worker.url}/v1/completions", json=body, timeout=60).json()["usage"][
            "prompt_tokens_details"
        ]["cached_tokens"]
        for _ in range(2)
    ]
    assert cached == [0, 64]
    assert worker.metric("vllm:prefix_cache_hits_total") == hits + 64
    assert worker.metric("vllm:prefix_cache_queries_total") >= 160
