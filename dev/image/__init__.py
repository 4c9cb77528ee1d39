"""Container images without a container engine: `ensure_images(cluster)` for a running cluster, or a tar.

python -m dev.image build operator --output operator.tar
python -m dev.image load --name plimsoll
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dev.cluster.description import Cluster

NAMES = ("operator", "worker")


def ensure_images(cluster: Cluster, names: Sequence[str] = NAMES) -> list[str]:
    """Make the images of the code as it is now known to a real node; their names, in the given order.

    Takes about a second when only the code changed; the first time, packages are installed (minutes).
    minutes). Raises ClusterError where the cluster has no real node.
    """
    from dev.image.loading import load

    return [load(name, cluster) for name in names]
