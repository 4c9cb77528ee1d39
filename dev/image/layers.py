"""What an image is made of: layers of entries, each known by a key of what it depends on.

A layer is a description, not a tar: the development cluster's containerd takes it by hard links (no copy of
five gigabytes), and `build` writes it as a tar for engines that want one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXECUTABLE, READABLE = 0o755, 0o644


@dataclass(frozen=True)
class Entry:
    """A file, folder or symbolic link of an image; everything belongs to root and is world-readable."""

    path: str  # without a leading slash
    source: Path | bytes | None = None  # None: a folder, or a link when `target` is given
    mode: int = READABLE
    target: str = ""


@dataclass(frozen=True)
class Layer:
    """`key` names the contents: equal keys promise equal entries."""

    key: str
    entries: Callable[[], Iterable[Entry]]

    @property
    def digest(self) -> str:
        """Identifies the layer where it is linked, not packed."""
        return "sha256:" + hashlib.sha256(self.key.encode()).hexdigest()


@dataclass(frozen=True)
class Image:
    """`config` is the `config` object of the OCI image specification: Entrypoint, Env, User, …"""

    name: str
    layers: tuple[Layer, ...]
    config: dict[str, Any] = field(default_factory=dict)
