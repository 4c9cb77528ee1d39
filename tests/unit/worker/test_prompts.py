"""From a checked request to what the engine generates from, without an engine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import tokenizers

from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.errors import ApiError
from plimsoll_worker.server.form import Form
from plimsoll_worker.server.messages import Limits
from plimsoll_worker.server.prompts import Prompts
from plimsoll_worker.server.protocol import ChatRequest, CompletionRequest

LIMITS = Limits(context=64, vocabulary=49152, eos_token_ids=frozenset({2}), sequences=8)


def completion(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", **fields})


class Encoding(Tokenizer):
    """Says how often it was asked."""

    asked = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        type(self).asked += 1
        return super().encode(text, add_special_tokens=add_special_tokens)


async def test_prompts_are_counted_before_the_first_is_read(tokenizer: Tokenizer) -> None:
    counted = Encoding(backend=tokenizer.backend)
    with pytest.raises(ApiError, match="9 prompts with 1 answers each are 9 sequences"):
        await Prompts(counted, LIMITS).of_completion(completion(prompt=["Hi"] * 9))
    assert Encoding.asked == 0
    assert len(await Prompts(counted, LIMITS).of_completion(completion(prompt=["Hi"] * 8))) == 8
    assert Encoding.asked == 8


async def test_a_token_that_the_model_lacks_is_refused_also_within_a_text(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_tokens(["<image_soft_token>"])
    assert backend.token_to_id("<image_soft_token>") == LIMITS.vocabulary
    prompts = Prompts(replace(tokenizer, backend=backend), LIMITS)
    told = re.escape("'<image_soft_token>', a token of the tokenizer that this model does not have")
    with pytest.raises(ApiError, match=f"prompt: the text has {told}"):
        await prompts.of_completion(completion(prompt=["Hi", "See <image_soft_token>"]))
    chat = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "See <image_soft_token>"}]}
    )
    with pytest.raises(ApiError, match=f"messages: the text has {told}"):
        await prompts.of_chat(chat, Form())


async def test_the_least_length_is_held_against_the_length_that_is_meant(tokenizer: Tokenizer) -> None:
    prompts = Prompts(tokenizer, LIMITS)
    with pytest.raises(ApiError, match="min_tokens is 17, more than the 16 tokens an answer may have"):
        await prompts.of_completion(completion(prompt="Hi", min_tokens=17))
    with pytest.raises(ApiError, match="min_tokens is 11, more than the 10 tokens an answer may have"):
        await prompts.of_completion(completion(prompt=[5] * 54, min_tokens=11))
    (ask,) = await prompts.of_completion(completion(prompt="Hi", min_tokens=16))
    assert (ask.params.min_tokens, ask.params.max_tokens) == (16, 16)
