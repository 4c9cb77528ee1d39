"""A client's request as the engine takes it: prompts as token ids, sampling parameters, all within the
model's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from plimsoll_worker.engine.sequence import SamplingParams
from plimsoll_worker.loading.chat_template import ChatTemplateError
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.errors import ApiError, bad_request
from plimsoll_worker.server.form import Form, form_of
from plimsoll_worker.server.messages import Limits
from plimsoll_worker.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
)
from plimsoll_worker.server.tool_families import calling_of

DEFAULT_COMPLETION_TOKENS = 16
"""max_tokens of /v1/completions when the client names none, as OpenAI documents it."""

LONG_TEXT = 8192
"""Characters from which on a text is tokenised in a thread: others' streams go on meanwhile."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to generate."""

    prompt: list[int]
    params: SamplingParams
    first_of_prompt: bool
    """Of n answers to a prompt, one counts it."""


class Prompts:
    """Turns requests into what the engine generates from."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._calling = calling_of(tokenizer, limits.eos_token_ids)

    async def form(self, request: ChatRequest) -> Form:
        """What the answers to a chat must look like. Raises ApiError."""
        return await form_of(request, self._calling, self._limits.eos_token_ids)

    async def of_chat(self, request: ChatRequest, form: Form) -> list[Ask]:
        """Raises ApiError."""
        self._check_count(request, 1)
        prompt = await self.chat(request.messages, request.chat_template_kwargs, form.tools)
        named = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        self._check_length(len(prompt), named, "messages")
        self._check_known(prompt, "messages")
        return self._asks(request, [prompt], named, self._limits.context, form.grammar)

    async def of_completion(self, request: CompletionRequest) -> list[Ask]:
        """Raises ApiError."""
        asked = _each_prompt(request.prompt)
        self._check_count(request, len(asked))
        prompts = [await self._ids(prompt) for prompt in asked]
        for prompt in prompts:
            self._check_length(len(prompt), request.max_tokens, "prompt")
        return self._asks(request, prompts, request.max_tokens, DEFAULT_COMPLETION_TOKENS)

    async def chat(
        self,
        messages: list[Message],
        variables: dict[str, object] | None = None,
        tools: list[dict[str, object]] | None = None,
    ) -> list[int]:
        """Token ids of a chat through the model's template. Raises ApiError."""
        template = self._tokenizer.chat_template
        if template is None:
            raise bad_request("this model has no chat template; use /v1/completions", param="messages")
        try:
            known = {"tools": tools, **(variables or {})}
            text = template.render([message.for_template() for message in messages], known)
        except ChatTemplateError as error:
            raise bad_request(str(error), param="messages") from error
        # The template writes the special tokens itself.
        return await self.tokenize(text, add_special_tokens=False)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Raises ApiError for a text that no tokens of the vocabulary could make short enough."""
        longest = self._limits.context * self._tokenizer.longest_token
        if len(text) > longest:
            raise self._too_long(f"at least {len(text) // self._tokenizer.longest_token}", None, "prompt")
        if len(text) < LONG_TEXT:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = await self.tokenize(prompt)
            self._check_known(ids, "prompt")
            return ids
        self._check_ids(prompt, "prompt")
        return prompt

    def _asks(
        self,
        request: GenerationRequest,
        prompts: list[list[int]],
        named: int | None,
        default: int,
        grammar: str | None = None,
    ) -> list[Ask]:
        params = self._params(request)
        most = named or min(default, self._limits.context - max(map(len, prompts)))
        if params.min_tokens > most:
            raise bad_request(
                f"min_tokens is {params.min_tokens}, more than the {most} tokens an answer may have",
                param="min_tokens",
            )
        return [
            Ask(
                prompt,
                replace(
                    params,
                    grammar=grammar,
                    max_tokens=named or min(default, self._limits.context - len(prompt)),
                    seed=None if request.seed is None else _next_seed(request.seed, choice),
                ),
                first_of_prompt=choice == 0,
            )
            for prompt in prompts
            for choice in range(request.n or 1)
        ]

    def _params(self, request: GenerationRequest) -> SamplingParams:
        bias = {int(token): added for token, added in (request.logit_bias or {}).items()}
        stop_ids = request.stop_token_ids or []
        self._check_ids(bias, "logit_bias")
        self._check_ids(stop_ids, "stop_token_ids")
        return SamplingParams(
            max_tokens=1,
            min_tokens=request.min_tokens or 0,
            temperature=_given(request.temperature, 1.0),
            top_p=_given(request.top_p, 1.0),
            top_k=max(0, request.top_k or 0),
            min_p=request.min_p or 0.0,
            repetition_penalty=_given(request.repetition_penalty, 1.0),
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=bias,
            logprobs=request.top_logprobs_asked,
            stop_token_ids=frozenset(stop_ids)
            | (frozenset() if request.ignore_eos else self._limits.eos_token_ids),
        )

    def _check_count(self, request: GenerationRequest, prompts: int) -> None:
        """Before any of them is tokenised: a body has room for millions."""
        choices = request.n or 1
        if prompts * choices > self._limits.sequences:
            raise bad_request(
                f"{prompts} prompts with {choices} answers each are {prompts * choices} sequences; "
                f"this worker takes {self._limits.sequences} at a time",
                param="n" if choices > 1 else "prompt",
            )

    def _check_known(self, ids: list[int], param: str) -> None:
        """Of a text. Some tokenizers have tokens that the model does not: Gemma 3's know one of images, and
        its text models end before it."""
        strange = max(ids, default=0)
        if strange >= self._limits.vocabulary:
            raise bad_request(
                f"{param}: the text has {self._tokenizer.backend.id_to_token(strange)!r}, a token of the "
                "tokenizer that this model does not have; leave it out",
                param=param,
            )

    def _check_ids(self, ids: Sequence[int] | dict[int, float], param: str) -> None:
        strange = next((token for token in ids if not 0 <= token < self._limits.vocabulary), None)
        if strange is not None:
            raise bad_request(
                f"{param}: token id {strange} is not in 0 to {self._limits.vocabulary - 1}", param=param
            )

    def _check_length(self, prompt_tokens: int, named: int | None, param: str) -> None:
        if prompt_tokens == 0:
            raise bad_request("the prompt has no tokens", param=param)
        if prompt_tokens + (named or 1) > self._limits.context:
            raise self._too_long(str(prompt_tokens), named, param)

    def _too_long(self, prompt_tokens: str, named: int | None, param: str) -> ApiError:
        answer = f" and {named} for the answer" if named else ""
        return bad_request(
            f"the longest context of this deployment is {self._limits.context} tokens, the prompt has "
            f"{prompt_tokens}{answer}; shorten the prompt or max_tokens",
            param=param,
            code="context_length_exceeded",
        )


def _each_prompt(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """One or several prompts as several. Raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("prompt holds nothing; send text, token ids, or a list of either", param="prompt")
    ids = [token for token in prompt if isinstance(token, int)]
    return [ids] if ids else [each for each in prompt if not isinstance(each, int)]


def _next_seed(seed: int, steps: int) -> int:
    """Within 64 bits with a sign."""
    return (seed + steps + 2**63) % 2**64 - 2**63


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
