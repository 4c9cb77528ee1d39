"""What an answer tells about its tokens' probabilities."""

from __future__ import annotations

import json

import pytest

from plimsoll_worker.engine.sequence import TokenLogprobs
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.generation import ToldToken
from plimsoll_worker.server.logprobs import LEAST, chat_logprobs


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_what_json_does_not_have_is_the_least(value: float, tokenizer: Tokenizer) -> None:
    told = chat_logprobs(tokenizer, [ToldToken(1, TokenLogprobs(value, ((2, value),)))])
    assert told["content"][0]["logprob"] == told["content"][0]["top_logprobs"][0]["logprob"] == LEAST
    json.dumps(told, allow_nan=False)
