"""JSON from files nobody vouches for: no duplicate names, no deep nesting, and errors that name the file."""

from __future__ import annotations

import json
from typing import Any

from plimsoll.model.errors import FileUnreadable


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises FileUnreadable that names `name` and the position."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FileUnreadable(f"{name}: not UTF-8 text at byte {error.start}") from error
    except RecursionError as error:
        raise FileUnreadable(f"{name}: JSON nested deeper than any model file is") from error
    except ValueError as error:
        raise FileUnreadable(f"{name}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileUnreadable(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
