"""Parts of API objects whose shape nobody has checked: saved YAML can hold anything anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = Mapping[str, Any]


def part(obj: Object, name: str) -> Object:
    """The mapping under `name`; empty where there is none."""
    found = obj.get(name)
    return found if isinstance(found, Mapping) else {}


def parts(obj: Object, name: str) -> list[Object]:
    """The mappings in the list under `name`; what is something else is left out."""
    found = obj.get(name)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []
