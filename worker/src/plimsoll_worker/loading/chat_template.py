"""Renders the chat template that comes with a model, in a sandbox, the way transformers does.

Templates are programs written by whoever made the model, so they run in jinja2's immutable sandbox and see
plain data alone. jinja2's sandbox bounds neither time nor memory; this one does: CPU seconds, the length of
the prompt, and what a single operator may make. The environment's settings and the functions it offers follow
transformers (utils/chat_template_utils.py): templates are written and tested against those.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_CPU_SECONDS = 2.0
"""Templates take milliseconds, also for long chats."""
MAX_CHARACTERS = 16 * 2**20
"""Of a prompt, and items of anything that an operator makes: twice the largest body of a request."""
MAX_EXPONENT = 64


class ChatTemplateError(ValueError):
    """The template refused the messages, or is broken; the message is the template's own."""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: bos_token, eos_token and the like, as the template's variables. Raises
        ChatTemplateError."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template does not compile: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt for `messages`, with the opening of the assistant's answer. Call from the main thread:
        only that can be interrupted. Raises ChatTemplateError."""
        known = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
            **(variables or {}),
        }
        try:
            with _cpu_seconds(RENDER_CPU_SECONDS):
                return _joined(self._template.generate(known))
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error


@contextmanager
def _cpu_seconds(limit: float) -> Iterator[None]:
    """Raise ChatTemplateError once the process has computed for so long within: its time, not the clock's, so
    that a busy node makes no template wrong."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the interpreter's signature
        raise ChatTemplateError(f"it computes for more than {limit:g} s")

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _joined(pieces: Iterator[str]) -> str:
    kept, length = [], 0
    for piece in pieces:
        kept.append(piece)
        length += len(piece)
        _check_size(length)
    return "".join(kept)


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise ChatTemplateError(
            f"it makes {size} characters or items of one thing, {MAX_CHARACTERS} are allowed"
        )


def _size(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 0


class _BoundedCode(CodeGenerator):
    """Lets the environment join what `~` joins."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which no operator makes anything huge."""

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Raises ChatTemplateError before it is too late."""
        match operator:
            case "+":
                _check_size(_size(left) + _size(right))
            case "*":
                _check_size(_size(left) * right if isinstance(right, int) else 0)
                _check_size(_size(right) * left if isinstance(left, int) else 0)
            case _ if abs(right) > MAX_EXPONENT:
                raise ChatTemplateError(f"the exponent {right} is larger than {MAX_EXPONENT}")
        return super().call_binop(context, operator, left, right)

    def concatenated(self, parts: Sequence[object]) -> str:
        """What `~` makes."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja's own filter escapes HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


class _GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's words for training; here it is
    transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
