"""Putting an image into the containerd of a real node without packing it first.

`ctr images import` of the worker's image writes every byte twice (2 min, 11 GB). Instead each layer that is
not there yet becomes a snapshot filled with hard links to the cached files, and only the image's two JSON
documents are imported. Layers below a container are never written to, so the links are safe. After a change
of the code, that is one small layer: about a second.
"""

from __future__ import annotations

import io
import json
import os
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
    if manifest.digest in inside.run([*CTR, "images", "ls", f"name=={image.name}"]):
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
    return True


def _snapshot(layer: Layer, name: str, parent: str, inside: Inside) -> None:
    """Fill and commit the snapshot of one layer. A half-filled one of an interrupted run is thrown away
    first.
    """
    filling = f"filling-{name}"
    if filling in inside.run([*CTR, "snapshots", "ls"]).split():
        inside.run([*CTR, "snapshots", "rm", filling])
    mounts = inside.run([*CTR, "snapshots", "prepare", "--mounts", filling, *([parent] if parent else [])])
    folder = _folder_of(mounts)
    for entry in layer.entries():
        _place(entry, folder / entry.path)
    inside.run([*CTR, "snapshots", "commit", name, filling])


def _folder_of(mounts: str) -> Path:
    """Where the content goes: an overlay's upper folder, or, with nothing below it, a bind's source."""
    [mount] = json.loads(mounts)
    uppers = [
        option.removeprefix("upperdir=") for option in mount["Options"] if option.startswith("upperdir=")
    ]
    return Path(uppers[0] if uppers else mount["Source"])


def _place(entry: Entry, path: Path) -> None:
    for folder in [*reversed(path.parents)]:
        if not folder.exists():
            folder.mkdir(mode=EXECUTABLE)
    if entry.target:
        path.symlink_to(entry.target)
    elif entry.source is None:
        path.mkdir(exist_ok=True)
        path.chmod(entry.mode)
    elif isinstance(entry.source, bytes):
        path.write_bytes(entry.source)
        path.chmod(entry.mode)
    elif entry.source.stat().st_mode & 0o777 == entry.mode and entry.source.stat().st_uid == 0:
        try:
            os.link(entry.source.resolve(), path)
        except OSError:  # another filesystem
            shutil.copy(entry.source, path)
    else:
        shutil.copy(entry.source, path)
        path.chmod(entry.mode)
