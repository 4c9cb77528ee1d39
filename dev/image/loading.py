"""From an image's name to a cluster that can run it, whatever the cluster is made of."""

from __future__ import annotations

from collections.abc import Callable

from dev.cluster import sandbox
from dev.cluster.description import Cluster
from dev.cluster.errors import ClusterError
from dev.image import containerd, images, pause
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
    inside = sandbox.find(cluster.paths)
    if inside is None:
        raise ClusterError(f"cluster {cluster.name} has no running real node to load {image.name} into")
    containerd.install(image, inside)
    return image.name
