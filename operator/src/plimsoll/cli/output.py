"""What every verb shares: exit codes, output formats, and how bytes are written.

Exception
  ├── BadInputError      exit 2   the message names file and field
  └── NotPossibleError   exit 3   does not fit, or cannot be: with the reason
"""

from __future__ import annotations

import json
from enum import IntEnum, StrEnum
from typing import Annotated, Any

import typer
import yaml

from plimsoll.inventory.quantity import QuantityError, at_most

GIB = 1 << 30


class ExitCode(IntEnum):
    """What a verb's exit code says."""

    YES = 0
    INTERNAL = 1
    BAD_INPUT = 2
    NOT_POSSIBLE = 3


class BadInputError(Exception):
    """An argument or a file cannot be used; the message names it and says what to write instead."""


class NotPossibleError(Exception):
    """The question was understood and the answer is no."""


class Format(StrEnum):
    """How a verb answers."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How to answer.")]


def render(data: Any, output: Format) -> str:
    """`data` as JSON or YAML text. Tables are each verb's own."""
    if output is Format.YAML:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()
    return json.dumps(data, indent=2, ensure_ascii=False)


def write(data: Any, output: Format) -> None:
    """Print `data` as JSON or YAML."""
    typer.echo(render(data, output))


def gib(count: int) -> str:
    """Bytes as GiB with two digits: `14.96 GiB`."""
    return f"{count / GIB:.2f} GiB"


def parse_bytes(text: str, option: str) -> int:
    """`24Gi`, `80G` or a plain number of bytes. Raises BadInputError that names `option`."""
    try:
        count = at_most(text)
    except QuantityError as error:
        raise BadInputError(f"{option}: {error}") from error
    if count < 1:
        raise BadInputError(f"{option}: {text!r} is less than one byte")
    return count
