"""A chat through the Service with the real `openai` client, printed as it streams."""

from __future__ import annotations

import sys
import time

import openai

QUESTION = "What is the capital of France? Answer in one sentence."


def stream(url: str, model: str, question: str = QUESTION) -> str:
    """Ask, print the answer token by token, then the rate. `url` is the base address that ends in /v1."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    print(f"> {question}")
    asked = time.monotonic()
    first: float | None = None
    answer: list[str] = []
    tokens = 0
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=64,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.monotonic()
                answer.append(choice.delta.content)
                sys.stdout.write(choice.delta.content)
                sys.stdout.flush()
    ended = time.monotonic()
    if first is not None and tokens > 1:
        rate = (tokens - 1) / (ended - first)
        print(f"\n({tokens} tokens, the first after {first - asked:.2f} s, then {rate:.1f} a second)")
    return "".join(answer)
