"""Typed look-ups in a model's metadata that fail by naming the file and the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported


class Fields:
    """The fields of one file, or of an object in it. A field that is null counts as missing."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        """`source` is the file, `prefix` the dotted path of an object in it."""
        self.values = values
        self.source = source
        self._prefix = prefix

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelUnreadable(f"{self._where(name)} is {value!r}, expected a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ModelUnreadable(f"{self._where(name)} is {value!r}, expected a number above 0")
        return float(value)

    def optional_integer(self, name: str) -> int | None:
        return None if self.values.get(name) is None else self.integer(name)

    def optional_number(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers."""
        found = self.values.get(name)
        if (
            not isinstance(found, list)
            or len(found) != count
            or not all(isinstance(number, (int, float)) for number in found)
        ):
            raise ModelUnreadable(f"{self._where(name)}: expected a list of {count} numbers")
        return tuple(float(number) for number in found)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise ModelUnreadable(f"{self._where(name)} is {value!r}, expected true or false")
        return value

    def part(self, name: str) -> Fields:
        """The object called `name`, empty when it is missing."""
        value = self._get(name, {})
        if not isinstance(value, Mapping):
            raise ModelUnreadable(f"{self._where(name)} is {value!r}, expected an object")
        return Fields(value, self.source, f"{self._prefix}{name}.")

    def refuse(self, name: str, why: str) -> ModelUnsupported:
        return ModelUnsupported(f"{self._where(name)} is {self.values.get(name)!r}: {why}")

    def _where(self, name: str) -> str:
        return f"{self.source}: {self._prefix}{name}"

    def _get(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        return default if value is None else value
