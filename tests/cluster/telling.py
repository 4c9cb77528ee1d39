"""What a person is told by a condition that something is wrong: what follows, or what to do.

Every condition that a test waits for on a cluster is held against this table, so that no fault is told by its
name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOLLOWS = {
    "CUDAOutOfMemory": "this configuration is left out from now on, and another one planned",
    "EffectiveConfigMismatch": "delete the pod to have its replica started anew",
    "EngineFailed": "rollout.maxRestarts",
    "ImagePullBackOff": "the kubelet goes on trying; where the name is wrong, write another engine.image",
    "InsufficientGPUs": "planned again whenever nodes, pods or the spec change",
    "InsufficientMemory": "planned again whenever nodes, pods or the spec change",
    "InsufficientResources": "planned again whenever nodes, pods or the spec change",
    "ModelFileTruncated": "tried again after",
    "ModelNotFound": "tried again after",
    "NameTaken": "and ours follows at once; or give the LLMDeployment another name",
    "NoMatchingNodes": "planned again whenever nodes, pods or the spec change",
    "NodeNotReady": "Kubernetes removes the pod at",
    "PodRefused": "tried again with growing pauses",
    "ReportUnreachable": "it is asked again with growing pauses. Serving is not affected",
    "RestartBudgetExhausted": "a new value of the annotation plimsoll.dev/retry tries again",
    "StartupDeadlineExceeded": "rollout.maxRestarts",
    "VolumeNotFound": "the model is read as soon as it is there",
}
"""Words that the message has, by reason."""


def tells_what_follows(condition: Mapping[str, Any]) -> None:
    """Fails where the message of a condition leaves open what comes next."""
    reason, message = condition["reason"], condition["message"]
    wrong = (condition["type"], condition["status"]) == ("Degraded", "True")
    assert not wrong or reason in FOLLOWS, f"what follows from {reason}? {message}"
    assert FOLLOWS.get(reason, "") in message, f"{reason} leaves open what follows: {message}"
