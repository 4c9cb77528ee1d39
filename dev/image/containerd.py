"""Putting an image into the containerd of a real node without packing it first.

`ctr images import` of the worker's image writes every byte twice (2 min, 11 GB). Instead each layer that is
not there yet becomes a snapshot filled with hard links to the cached files, and only the image's two JSON
documents are imported. Layers below a container are never written to, so the links are safe. After a change
of the code, that is one small layer: about a second.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Protocol

from dev.image import oci
from dev.image.layers import EXECUTABLE, Entry, Image, Layer

CTR = ("ctr", "--namespace=k8s.io")
_ROOTED = "containerd.io/gc.root"


class Inside(Protocol):
    """Runs commands where containerd runs."""

    def run(self, argv: list[str | Path], *, stdin: bytes = b"") -> str: ...


def install(image: Image, inside: Inside) -> bool:
    """Make an image known to a containerd; False when it was there already."""
    digests = [layer.digest for layer in image.layers]
    manifest, config = oci.documents(image, [(digest, 0) for digest in digests])
    before = _known(image.name, inside)
    if before == config.digest:
        return False
    present = set(inside.run([*CTR, "snapshots", "ls"]).split())
    chain = oci.chain_ids(digests)
    made = []
    for number, layer in enumerate(image.layers):
        if chain[number] not in present:
            _snapshot(layer, chain[number], chain[number - 1] if number else "", inside)
            made.append(chain[number])
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        oci.write_index(archive, image.name, manifest, config)
    inside.run([*CTR, "images", "import", "-"], stdin=stream.getvalue())
    for name in made:  # the image holds them now, so they go when it goes
        inside.run([*CTR, "snapshots", "label", name, f"{_ROOTED}="])
    if before:  # the CRI plugin holds each image by its configuration's digest too
        inside.run([*CTR, "images", "rm", before])
    return True


def _known(name: str, inside: Inside) -> str:
    """The configuration's digest of an image that containerd knows by this name, or nothing."""
    rows = [line.split() for line in inside.run([*CTR, "images", "ls", f"name=={name}"]).splitlines()]
    manifest = next((row[2] for row in rows if row[0] == name), "")
    return (
        str(json.loads(inside.run([*CTR, "content", "get", manifest]))["config"]["digest"])
        if manifest
        else ""
    )


def _snapshot(layer: Layer, name: str, parent: str, inside: Inside) -> None:
    """Fill and commit the snapshot of one layer. A half-filled one of an interrupted run is thrown away
    first.
    """
    filling = f"filling-{name}"
    if filling in inside.run([*CTR, "snapshots", "ls"]).split():
        inside.run([*CTR, "snapshots", "rm", filling])
    mounts = inside.run([*CTR, "snapshots", "prepare", "--mounts", filling, *([parent] if parent else [])])
    filler = _Filling(_folder_of(mounts))
    for entry in layer.entries():
        filler.place(entry)
    inside.run([*CTR, "snapshots", "commit", name, filling])


def _folder_of(mounts: str) -> Path:
    """Where the content goes: an overlay's upper folder, or, with nothing below it, a bind's source."""
    [mount] = json.loads(mounts)
    uppers = [
        option.removeprefix("upperdir=") for option in mount["Options"] if option.startswith("upperdir=")
    ]
    return Path(uppers[0] if uppers else mount["Source"])


class _Filling:
    """Places entries below a folder; remembers which folders exist, as a layer has thousands of files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = {root}

    def place(self, entry: Entry) -> None:
        path = self._root / entry.path
        self._make_folder(path.parent)
        if entry.target:
            path.symlink_to(entry.target)
        elif entry.source is None:
            self._make_folder(path)
            path.chmod(entry.mode)
        elif isinstance(entry.source, bytes):
            path.write_bytes(entry.source)
            path.chmod(entry.mode)
        else:
            _link(entry.source.resolve(), entry.mode, path)

    def _make_folder(self, path: Path) -> None:
        if path in self._folders:
            return
        self._make_folder(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(EXECUTABLE)
        self._folders.add(path)


def _link(source: Path, mode: int, path: Path) -> None:
    """Link a file where its mode and owner are right already and the filesystem is the same; copy it
    elsewhere."""
    found = source.stat()
    if found.st_mode & 0o777 == mode and found.st_uid == 0:
        try:
            path.hardlink_to(source)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK):
                raise
        else:
            return
    shutil.copyfile(source, path)
    path.chmod(mode)
