"""The JSON documents of an OCI image, and an archive of them."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO

from dev.image.layers import Image

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Document:
    """A JSON document as its bytes, addressed by their digest."""

    content: bytes

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.content).hexdigest()


def architecture() -> str:
    """This machine's architecture in OCI's spelling."""
    return _ARCHITECTURES[platform.machine()]


def documents(image: Image, layers: list[tuple[str, int]]) -> tuple[Document, Document]:
    """(manifest, config) of an image whose layers have these digests and sizes in bytes."""
    config = _document(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in layers]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": config.digest, "size": len(config.content)},
        "layers": [{"mediaType": _LAYER, "digest": digest, "size": size} for digest, size in layers],
    }
    return _document(manifest), config


def chain_ids(digests: list[str]) -> list[str]:
    """The chain identifiers of the image specification: what a snapshot of layers 0 to i is called."""
    chain: list[str] = []
    for digest in digests:
        above = f"{chain[-1]} {digest}" if chain else ""
        chain.append("sha256:" + hashlib.sha256(above.encode()).hexdigest() if chain else digest)
    return chain


def write_index(archive: tarfile.TarFile, name: str, manifest: Document, config: Document) -> None:
    """Write everything of an OCI layout but the layers."""
    descriptor = {
        "mediaType": _MANIFEST,
        "digest": manifest.digest,
        "size": len(manifest.content),
        "platform": {"architecture": architecture(), "os": "linux"},
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
    }
    add(archive, "oci-layout", _document({"imageLayoutVersion": "1.0.0"}).content)
    add(archive, "index.json", _document({"schemaVersion": 2, "manifests": [descriptor]}).content)
    for document in (manifest, config):
        add(archive, blob(document.digest), document.content)


def blob(digest: str) -> str:
    """Where a layout keeps the blob of a digest."""
    return "blobs/" + digest.replace(":", "/")


def add(archive: tarfile.TarFile, path: str, content: bytes | BinaryIO, size: int | None = None) -> None:
    """Add a file to an archive."""
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    member = tarfile.TarInfo(path)
    member.size = len(content) if isinstance(content, bytes) else size or 0
    archive.addfile(member, stream)


def _document(content: dict[str, Any]) -> Document:
    return Document(json.dumps(content, sort_keys=True).encode())
