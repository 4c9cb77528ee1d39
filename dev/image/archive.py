"""An image as an OCI archive: one tar that `docker load`, `kind load`, `ctr import` and `skopeo` read.

Layers are packed twice: once for digest and size, which come first in the archive, once into it. That takes
no room beside the archive itself, which matters for a layer of five gigabytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from dev.image import oci
from dev.image.layers import EXECUTABLE, Entry, Image, Layer

_CHUNK_BYTES = 1 << 20


def write(image: Image, path: Path) -> None:
    """Write the archive of an image."""
    measured = [_measure(layer) for layer in image.layers]
    manifest, config = oci.documents(image, measured)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        oci.write_index(archive, image.name, manifest, config)
        for layer, (digest, size) in zip(image.layers, measured, strict=True):
            with _packed(layer) as stream:
                oci.add(archive, oci.blob(digest), stream, size)


def _measure(layer: Layer) -> tuple[str, int]:
    """(digest, size in bytes) of a layer's tar."""
    sink = _Measure()
    pack(layer, cast("IO[bytes]", sink))
    return f"sha256:{sink.hash.hexdigest()}", sink.size


class _Measure:
    """A file that is only counted and hashed."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        self.size += len(content)
        return len(content)


def pack(layer: Layer, stream: IO[bytes]) -> None:
    """Write a layer as a tar: the same bytes for the same contents."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK_BYTES) as archive:
        folders = {Path()}
        for entry in layer.entries():
            for folder in reversed(Path(entry.path).parents):
                if folder not in folders:
                    folders.add(folder)
                    archive.addfile(_member(Entry(str(folder), mode=EXECUTABLE)))
            if Path(entry.path) not in folders:
                _add(archive, entry)
            if entry.source is None and not entry.target:
                folders.add(Path(entry.path))


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    member = _member(entry)
    if isinstance(entry.source, bytes):
        member.size = len(entry.source)
        archive.addfile(member, io.BytesIO(entry.source))
    elif isinstance(entry.source, Path):
        with entry.source.open("rb") as file:
            found = entry.source.stat()
            member.size, member.mtime = (
                found.st_size,
                int(found.st_mtime),
            )  # bytecode is checked against the time
            archive.addfile(member, file)
    else:
        archive.addfile(member)


def _member(entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.path)
    member.mode = entry.mode
    if entry.target:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
    elif entry.source is None:
        member.type = tarfile.DIRTYPE
    return member


@contextmanager
def _packed(layer: Layer) -> Iterator[BinaryIO]:
    """A layer's tar as a stream to read from, packed while it is read."""
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as stream:
            pack(layer, stream)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        with os.fdopen(reading, "rb") as stream:
            yield stream
    finally:
        thread.join()
