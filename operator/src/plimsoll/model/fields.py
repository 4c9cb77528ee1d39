"""Typed access to the fields of a file nobody vouches for: every value is checked, every error names the
field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable

MAX_WIDTH = 2**31
MAX_LAYERS = 1000
MAX_EXPERTS = 65_536
MAX_HEADS = 65_536


@dataclass(frozen=True)
class Fields:
    """The values of a config.json, or of GGUF metadata under the same names."""

    values: Mapping[str, Any]
    name: str
    """The file, for messages."""

    def size(self, key: str, *, default: int | None = None, least: int = 1, most: int = MAX_WIDTH) -> int:
        """A whole number. Raises FileUnreadable."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            found = "nothing" if value is None else repr(value)[:80]
            raise FileUnreadable(
                f"{self.name}: {key}: expected a whole number from {least} to {most}, found {found}"
            )
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise FileUnreadable(f"{self.name}: {key}: expected true or false, found {value!r:.80}")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise FileUnreadable(f"{self.name}: {key}: expected a string, found {value!r:.80}")
        return value

    def kinds(self, key: str, layers: int, known: Sequence[str]) -> list[str] | None:
        """One word for each layer, or None when the field is absent. Raises FileUnreadable."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != layers:
            raise FileUnreadable(f"{self.name}: {key}: expected {layers} entries")
        for kind in value:
            if kind not in known:
                raise FileUnreadable(f"{self.name}: {key}: expected {' or '.join(known)}, found {kind!r:.80}")
        return value

    def indices(self, key: str) -> frozenset[int]:
        """Numbers of layers; empty when the field is absent."""
        value = self.values.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or not all(isinstance(entry, int) for entry in value):
            raise FileUnreadable(f"{self.name}: {key}: expected numbers of layers, found {value!r:.80}")
        return frozenset(value)

    def part(self, key: str) -> Fields | None:
        """A nested object, or None when the field is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise FileUnreadable(f"{self.name}: {key}: expected an object, found {value!r:.80}")
        return Fields(value, f"{self.name}: {key}")

    def refuse(self, key: str, why: str) -> ArchitectureUnsupported:
        """The error for a variant of a family that is not read."""
        return ArchitectureUnsupported(f"{self.name}: {key} {self.values.get(key)!r:.80}: {why}")

    @property
    def layers(self) -> int:
        return self.size("num_hidden_layers", most=MAX_LAYERS)

    @property
    def hidden(self) -> int:
        return self.size("hidden_size")
