"""What the HTTP routes stand on: the state of the worker, and requests turned into generations.

The server listens from the first second, long before there is a model, so that probes get an answer instead
of a refused connection; until then there is no `Service`, only a `Lobby` without one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from plimsoll_worker.engine.engine import Engine, EngineClosed, QueueFull
from plimsoll_worker.engine.sequence import SamplingParams
from plimsoll_worker.launch import Launch, Report
from plimsoll_worker.loading.chat_template import ChatTemplateError
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.progress import Startup
from plimsoll_worker.server.errors import ApiError, bad_request, unavailable
from plimsoll_worker.server.generation import Generation
from plimsoll_worker.server.metrics import Metrics
from plimsoll_worker.server.protocol import ChatRequest, CompletionRequest, GenerationRequest, Message

DEFAULT_COMPLETION_TOKENS = 16
"""max_tokens of /v1/completions when the client names none, as OpenAI documents it."""


class State(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model that answers."""

    launch: Launch
    engine: Engine
    tokenizer: Tokenizer
    metrics: Metrics
    eos_token_ids: frozenset[int]
    vocab_size: int
    opened_at: int
    """Seconds since 1970."""
    report: Callable[[], Report]
    """Measured anew at every call."""

    def generate_chat(self, request: ChatRequest) -> Generation:
        """Raises ApiError."""
        prompt = self.chat_prompt(request.messages, request.chat_template_kwargs)
        asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        return self._generate(request, prompt, asked or self.launch.max_context_tokens - len(prompt), asked)

    def generate_completion(self, request: CompletionRequest) -> Generation:
        """Raises ApiError."""
        prompt = self._completion_prompt(request)
        room = self.launch.max_context_tokens - len(prompt)
        asked = request.max_tokens
        return self._generate(request, prompt, asked or min(DEFAULT_COMPLETION_TOKENS, room), asked)

    def chat_prompt(self, messages: list[Message], variables: dict[str, object] | None = None) -> list[int]:
        """Token ids of a chat through the model's template. Raises ApiError."""
        template = self.tokenizer.chat_template
        if template is None:
            raise bad_request("this model has no chat template; use /v1/completions", param="messages")
        try:
            text = template.render([message.for_template() for message in messages], variables)
        except ChatTemplateError as error:
            raise bad_request(str(error), param="messages") from error
        # The template writes the special tokens itself.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 unless `name` is served here."""
        if name != self.launch.served_name:
            raise ApiError(
                404,
                f"the model {name!r} is not served here; this worker serves {self.launch.served_name!r}",
                param="model",
                code="model_not_found",
            )

    def _completion_prompt(self, request: CompletionRequest) -> list[int]:
        prompt = request.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise bad_request(
                    f"prompt holds {len(prompt)} prompts; send one request for each", param="prompt"
                )
            prompt = prompt[0]
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        ids = [token for token in prompt if isinstance(token, int)]
        strange = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if strange is not None:
            raise bad_request(
                f"prompt: token id {strange} is not in 0 to {self.vocab_size - 1}", param="prompt"
            )
        return ids

    def _generate(
        self, request: GenerationRequest, prompt: list[int], max_tokens: int, asked: int | None
    ) -> Generation:
        self._check_length(len(prompt), asked)
        stop_ids = frozenset(request.stop_token_ids or ())
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(0, request.top_k or 0),
            seed=request.seed,
            stop_token_ids=stop_ids if request.ignore_eos else stop_ids | self.eos_token_ids,
        )
        try:
            return Generation(
                self.engine,
                self.tokenizer,
                self.metrics,
                prompt=prompt,
                params=params,
                stop=request.stop or [],
            )
        except QueueFull as error:
            raise ApiError(
                429,
                str(error),
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(error.retry_after)},
            ) from error
        except EngineClosed as error:
            raise unavailable(str(error), "draining") from error

    def _check_length(self, prompt_tokens: int, asked: int | None) -> None:
        longest = self.launch.max_context_tokens
        if prompt_tokens == 0:
            raise bad_request("the prompt has no tokens", param="prompt")
        if prompt_tokens + (asked or 1) > longest:
            answer = f" and {asked} for the answer" if asked else ""
            raise bad_request(
                f"the longest context of this deployment is {longest} tokens, the prompt has "
                f"{prompt_tokens}{answer}; shorten the prompt or max_tokens",
                param="messages",
                code="context_length_exceeded",
            )


@dataclass(slots=True)
class Lobby:
    """What is there before a model is, and stays: the state, and the service once it is open."""

    launch: Launch
    api_key: str | None
    startup: Startup
    state: State = State.STARTING
    opened: Service | None = field(default=None)

    def service(self) -> Service:
        """The service while it takes requests. Raises ApiError 503."""
        if self.opened is None:
            raise unavailable(self.startup.doing, "starting")
        if self.state is not State.READY or self.opened.engine.closed:
            raise unavailable("the worker is shutting down; another replica will answer", "draining")
        return self.opened
