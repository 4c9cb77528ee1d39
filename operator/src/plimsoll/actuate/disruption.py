"""How many worker pods a drain may take at once: those of one replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plimsoll.actuate.ownership import DEPLOYMENT, NAME, WORKER, Owner, labels, metadata


def pod_disruption_budget(owner: Owner, replicas: int, stages: int) -> dict[str, Any]:
    """`<name>`: all pods but those of one replica stay. The only replica may go: a drain must end.

    A number and not `maxUnavailable`, which Kubernetes can only count where one controller's scale says how
    many pods there are, and a replica may have several. Of what is asked for and not of what is ready: with
    every pod that a drain took, less would be ready, and the next one might go.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, owner.name, labels(owner, WORKER)),
        "spec": {
            "minAvailable": max(0, replicas - 1) * stages,
            "selector": {"matchLabels": {NAME: WORKER, DEPLOYMENT: owner.name}},
        },
    }


def keeps_any(budget: Mapping[str, Any]) -> bool:
    """Whether it is worth writing: with one that keeps no pod a drain does what it does with none."""
    return bool(budget["spec"]["minAvailable"])
