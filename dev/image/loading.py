"""From an image's name to a cluster that can run it, whatever the cluster is made of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from dev.cluster import kind, sandbox
from dev.cluster.description import Cluster
from dev.cluster.errors import ClusterError
from dev.image import archive, containerd, images, pause
from dev.image.layers import Image

BUILDERS: dict[str, Callable[[], Image]] = {
    "operator": images.operator,
    "worker": images.worker,
    "pause": pause.image,
}


def build(name: str) -> Image:
    """The image of the code as it is now. Raises ClusterError for an unknown name."""
    if name not in BUILDERS:
        raise ClusterError(f"no image {name!r}; known are {', '.join(BUILDERS)}")
    return BUILDERS[name]()


def load(name: str, cluster: Cluster) -> str:
    """Put the image of that name into the cluster; the full name by which pods refer to it."""
    image = build(name)
    if cluster.provider == "kind":
        _load_into_kind(image, cluster)
        return image.name
    inside = sandbox.find(cluster.paths)
    if inside is None:
        raise ClusterError(f"cluster {cluster.name} has no running real node to load {image.name} into")
    containerd.install(image, inside)
    return image.name


def _load_into_kind(image: Image, cluster: Cluster) -> None:
    """As an archive, and only when the image's layers are not those that were loaded last."""
    loaded = cluster.paths.root / f"loaded-{image.name.replace('/', '-')}"
    keys = "\n".join(layer.key for layer in image.layers)
    if loaded.exists() and loaded.read_text() == keys:
        return
    with tempfile.TemporaryDirectory(dir=cluster.paths.root) as folder:
        path = Path(folder) / "image.tar"
        archive.write(image, path)
        kind.load_archive(cluster, path)
    loaded.write_text(keys)
