"""What clients may send, checked. A field that would change the answer and is not implemented is refused by
name.

Three kinds of fields: those below; those that are accepted at the one value that changes nothing (`NEUTRAL`:
clients send their defaults); those that cannot change an answer and are dropped (`WITHOUT_EFFECT`). All
others are unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from plimsoll_worker.server.structure import Choice, ClientModel, ResponseFormat, ToolCall, Tools

MAX_STOP_STRINGS = 4
MAX_BIAS = 100
MAX_DIGITS = 18
"""Of a token id in text."""
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20

NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
    "skip_special_tokens": (True,),
}
"""Fields that an endpoint does not have, and the values at which they ask for nothing. null always is one."""

WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields for the books of whoever runs the service."""


class StreamOptions(ClientModel):
    """Of a streamed answer."""

    include_usage: bool = False
    """One event more, with the usage."""
    continuous_usage_stats: bool = False
    """The usage so far in every event."""

    @model_validator(mode="after")
    def _continuous_needs_usage(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise ValueError("continuous_usage_stats needs include_usage: true")
        return self


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _by_token(bias: dict[str, float]) -> dict[str, float]:
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) <= MAX_DIGITS):
            raise ValueError(f"found the key {token[:MAX_DIGITS]!r}, expected token ids")
    return bias


def _first_that_is_no_number(bias: Any) -> Any:
    """As for lists: one error is enough."""
    if isinstance(bias, dict):
        for token, added in bias.items():
            if type(added) not in (int, float) or not -MAX_BIAS <= added <= MAX_BIAS:
                return {token: added}
    return bias


def _text_or_ids(value: Any) -> Any:
    """In one sentence: a union tells what is wrong with each of its members."""
    kinds = {type(each) for each in value} if isinstance(value, list) else {type(value)}
    if kinds <= {str} or (isinstance(value, list) and kinds in ({int}, {list})):
        return value
    raise ValueError("expected text, token ids, or a list of either")


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_as_list)
]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    BeforeValidator(_first_that_is_no_number),
    AfterValidator(_by_token),
]
TokenId = Annotated[int, Field(ge=0)]
Ids = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class GenerationRequest(ClientModel):
    """What chat and plain completions have in common."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """No stop token or stop string ends an answer that is shorter."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: LogitBias | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The second of n answers takes the next seed, and so on."""
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Lower goes first."""
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    """Cached prefixes are shared only among requests of the same salt."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def top_logprobs_asked(self) -> int | None:
        """How many of the likeliest tokens to tell at each place; None: no log probabilities at all."""
        raise AssertionError("each endpoint asks in its own way")

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in WITHOUT_EFFECT:
                continue
            if name in NEUTRAL and name not in cls.model_fields:
                if value is not None and value not in NEUTRAL[name]:
                    neutral = " or ".join(repr(allowed) for allowed in NEUTRAL[name])
                    raise ValueError(
                        f"{name} is not supported at this endpoint; leave it out or send {neutral}"
                    )
                continue
            kept[name] = value
        return kept

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self


class TextPart(ClientModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(ClientModel):
    """One turn of a chat."""

    role: str
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    """With the role assistant: what it called."""
    tool_call_id: str | None = None
    """With the role tool: the call whose outcome the content is."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_says_nothing(cls, data: Any) -> Any:
        """Answers are told back as they came, with fields of other kinds of models at null."""
        return (
            {name: value for name, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing; only an assistant's message with tool_calls needs none")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls come from the role 'assistant', found {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError(
                "tool_call_id belongs to a message of the role 'tool', and every such message has one"
            )
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: content in one string."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        rest = {"name": self.name, "tool_call_id": self.tool_call_id}
        calls = [call.for_template() for call in self.tool_calls or ()]
        return {
            "role": self.role,
            "content": content or "",
            **{name: value for name, value in rest.items() if value is not None},
            **({"tool_calls": calls} if calls else {}),
        }


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """More variables for the model's chat template."""
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    """auto, unless there are no tools."""
    parallel_tool_calls: bool | None = None
    """False: one call at the most."""

    @property
    def top_logprobs_asked(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        """max_tokens is the old name of max_completion_tokens."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ValueError(f"max_tokens is {old} and max_completion_tokens is {new}; send one of them")
        return self

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is only allowed with logprobs: true")
        return self

    @model_validator(mode="after")
    def _tools_are_there_to_choose(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        choice = self.tool_choice
        if not names and choice is not None and choice.mode != "none":
            raise ValueError("tool_choice is only allowed with tools")
        if choice is not None and choice.name is not None and choice.name not in names:
            raise ValueError(f"tool_choice: {choice.name!r} is none of the tools, which are {names}")
        if len(set(names)) < len(names):
            raise ValueError("two tools have one name")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[
        str | Ids | Texts | Annotated[list[Ids], Field(fail_fast=True)], BeforeValidator(_text_or_ids)
    ]
    echo: bool = False
    """The answer begins with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def top_logprobs_asked(self) -> int | None:
        return self.logprobs

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise ValueError(
                "echo and logprobs do not go together: this engine tells no log probabilities of a prompt"
            )
        return self


class TokenizeRequest(ClientModel):
    """POST /tokenize: a prompt, or messages through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self
