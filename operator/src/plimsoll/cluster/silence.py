"""Pods on nodes that fell silent: what is wrong, and when Kubernetes gives them up.

The operator waits with Kubernetes: a node that is away for a minute brings its pods back with it, and a
second pod in place of one that still runs would hold another GPU. Until then nothing moves, so somebody who
looks must find the node and the time here.
"""

from __future__ import annotations

from datetime import timedelta

from plimsoll.api.conditions import Failure
from plimsoll.cluster.observed import Observed
from plimsoll.cluster.own_pods import OwnPod, at, stamp

NODE_NOT_READY = "NodeNotReady"


def unreachable(pod: OwnPod, observed: Observed) -> Failure | None:
    """Why nobody knows how the pod is; None where its node is ready."""
    if (node := observed.unready_nodes.get(pod.node)) is None:
        return None
    since = f" since {node.unready_since}" if node.unready_since else ""
    why = f" ({node.unready_why.rstrip('.')})" if node.unready_why else ""
    return Failure(
        NODE_NOT_READY,
        f"its node {pod.node} is not ready{since}{why}: {_next(pod, node.unready_since)}",
        pod.name,
    )


def _next(pod: OwnPod, since: str) -> str:
    if pod.patience_seconds is None:
        return (
            "the pod tolerates that without end (placement.tolerations), so it waits there; delete it to "
            "have its replica placed on another node"
        )
    patience = timedelta(seconds=pod.patience_seconds)
    when = f"at {stamp(at(since) + patience)}" if since else f"after {pod.patience_seconds} s"
    return (
        f"unless it comes back, Kubernetes removes the pod {when}, then its replica is placed on another node"
    )
