"""What the hub serves: repositories of files, on disk or header-only.

On disk a header-only shard is a file `NAME.safetensors.header`: the first bytes of `NAME.safetensors`, up to
its tensor data. Sparse files were the alternative; one careless copy makes them terabytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Protocol

HEADER_SUFFIX = ".header"


class Access(StrEnum):
    """Who may read a repository, and what the others are told."""

    PUBLIC = "public"
    GATED = "gated"
    """Everybody may see it, files need a token whose owner accepted its terms."""
    PRIVATE = "private"
    """Without a token it does not exist."""


class HubFile(Protocol):
    """One file of a repository."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def read(self, start: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class DiskFile:
    """A file on disk, served as it is."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)


@dataclass(frozen=True)
class MemoryFile:
    """`content` and then zeros up to `size`, which nobody stored."""

    content: bytes
    size: int

    @cached_property
    def sha256(self) -> str:
        # Of what is stored: hashing terabytes of zeros would take the hour that this file saves.
        return hashlib.sha256(self.content + str(self.size).encode()).hexdigest()

    def read(self, start: int, length: int) -> bytes:
        stop = min(start + length, self.size)
        stored = self.content[start:stop]
        return stored + bytes(max(0, stop - start - len(stored)))


def header_only(header: bytes) -> MemoryFile:
    """A safetensors file of which only the header is given: its length prefix and its JSON."""
    tensors = json.loads(header[8:])
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    return MemoryFile(header, len(header) + max(ends, default=0))


@dataclass(frozen=True)
class Repository:
    """One model repository at its only commit."""

    name: str
    """organisation/repository"""
    files: Mapping[str, HubFile]
    access: Access = Access.PUBLIC
    commit: str = field(init=False)
    """A hash over names, sizes and first bytes: the same content has the same commit on every machine."""

    def __post_init__(self) -> None:
        digest = hashlib.sha1(usedforsecurity=False)
        for path, file in sorted(self.files.items()):
            digest.update(f"{path}\0{file.size}\0".encode() + file.read(0, 65536))
        object.__setattr__(self, "commit", digest.hexdigest())

    @classmethod
    def from_folder(cls, name: str, folder: Path, access: Access = Access.PUBLIC) -> Repository:
        """The files of a folder. `*.header` files stand for the shards they are the beginning of."""
        files: dict[str, HubFile] = {}
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder).as_posix()
            if path.is_dir() or path.name.startswith("."):
                continue
            if path.name.endswith(HEADER_SUFFIX):
                files[relative.removesuffix(HEADER_SUFFIX)] = header_only(path.read_bytes())
            else:
                files[relative] = DiskFile(path)
        return cls(name, files, access)

    def write(self, folder: Path) -> None:
        """The header-only repository as a folder that `from_folder` reads back."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, file in self.files.items():
            assert isinstance(file, MemoryFile), f"{path} is on disk already"
            virtual = file.size > len(file.content)
            (folder / (path + HEADER_SUFFIX if virtual else path)).write_bytes(file.content)


def repositories_in(root: Path) -> list[Repository]:
    """Every ROOT/organisation/repository."""
    return [
        Repository.from_folder(f"{organisation.name}/{folder.name}", folder)
        for organisation in sorted(root.iterdir())
        if organisation.is_dir()
        for folder in sorted(organisation.iterdir())
        if folder.is_dir()
    ]
