"""Log probabilities of an answer's tokens in the two forms that OpenAI's API has: one for chat, one for plain
completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.detokenizer import REPLACEMENT
from plimsoll_worker.server.generation import ToldToken

Json = dict[str, Any]

LEAST = -9999.0
"""For minus infinity, which JSON does not have: vLLM's number."""


def chat_logprobs(tokenizer: Tokenizer, told: Sequence[ToldToken]) -> Json:
    """`choices[].logprobs` of /v1/chat/completions."""
    return {
        "content": [
            {
                **_entry(tokenizer, each.token, each.logprobs.chosen),
                "top_logprobs": [_entry(tokenizer, *pair) for pair in each.logprobs.top],
            }
            for each in told
        ]
    }


def completion_logprobs(tokenizer: Tokenizer, told: Sequence[ToldToken], offset: int) -> tuple[Json, int]:
    """`choices[].logprobs` of /v1/completions, whose first token begins at character `offset` of the answer,
    and the offset behind its last."""
    texts = [_text(tokenizer, each.token) for each in told]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    body = {
        "tokens": texts,
        "token_logprobs": [_finite(each.logprobs.chosen) for each in told],
        # The chosen token is told with them also where it is not among the likeliest, as OpenAI does.
        "top_logprobs": [
            {
                _text(tokenizer, token): _finite(value)
                for token, value in (*each.logprobs.top, (each.token, each.logprobs.chosen))
            }
            for each in told
        ],
        "text_offset": offsets,
    }
    return body, offset


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> Json:
    text = _text(tokenizer, token)
    # A token that is part of a character has no text of its own, and what stands for it has other bytes.
    whole = REPLACEMENT not in text
    return {
        "token": text,
        "logprob": _finite(logprob),
        "bytes": list(text.encode()) if whole else None,
    }


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False)


def _finite(logprob: float) -> float:
    """JSON has neither -inf nor NaN. No comparison with NaN holds, so what comes first stays."""
    return max(LEAST, logprob)
