"""Whether a node would take a deployment's pods at all, whatever is free on it: the scheduler's filters but
resources.

Pods are born pinned to their node, so a node that the scheduler would refuse is a pod that stays pending for
ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, Toleration
from plimsoll.inventory.taints import untolerated
from plimsoll.inventory.views import NodeView, Taint, VolumeView
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.planning.supply import OS_LABEL
from plimsoll_worker.launch import Device

GPU_TOLERATION = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
"""The taint that GPU pools carry to keep everything else away; GPU workers are what the pool is for."""
NO_MATCHING_NODES, VOLUME_UNAVAILABLE = "NoMatchingNodes", "VolumeUnavailable"
SHARED_ACCESS = ("ReadWriteMany", "ReadOnlyMany")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a node is out of the question."""

    reason: str
    """NoMatchingNodes or VolumeUnavailable; the latter only where the volume alone stands in the way."""
    words: str
    """Continues the node's name: "is cordoned"."""


def worker_tolerations(spec: LLMDeploymentSpec) -> tuple[Toleration, ...]:
    """Tolerations of the worker pods: the user's, and on GPUs the pool's own."""
    own = (GPU_TOLERATION,) if spec.placement.device is Device.GPU else ()
    return (*spec.placement.tolerations, *own)


def single_node(volume: VolumeView | None) -> bool:
    """Whether all pods of the claim must run on one node."""
    return volume is not None and not any(mode in SHARED_ACCESS for mode in volume.access_modes)


def most_replicas(volume: VolumeView | None) -> int | None:
    """How many pods may use the claim at once; None: any number."""
    return 1 if volume is not None and set(volume.access_modes) == {"ReadWriteOncePod"} else None


class Eligibility:
    """The filters of one deployment."""

    def __init__(self, request: DeploymentRequest) -> None:
        self._excluded = request.excluded_nodes
        self._spec = request.spec
        self._volume = request.volume

    def obstacle(self, node: NodeView) -> Obstacle | None:
        """Why a new pod cannot go to the node, or None when it can."""
        if refusal := self.of_kind(node):
            return refusal
        if node.name in self._excluded:
            return Obstacle(NO_MATCHING_NODES, "did not take a pod of this deployment before")
        if words := self._unreachable_volume(node.name):
            return Obstacle(VOLUME_UNAVAILABLE, words)
        return None

    def of_kind(self, node: NodeView) -> Obstacle | None:
        """The same as far as any node of a pool can answer it for all."""
        words = self._refuses(node)
        return Obstacle(NO_MATCHING_NODES, words) if words else None

    def by_node(self) -> Callable[[str], bool] | None:
        """What has to be asked node by node, by name; None when nothing has."""
        volume = self._volume
        bound = volume is not None and (
            volume.node_names is not None or (single_node(volume) and volume.used_on)
        )
        if not bound and not self._excluded:
            return None
        return lambda name: name not in self._excluded and not self._unreachable_volume(name)

    def _refuses(self, node: NodeView) -> str:
        for name, value in self._spec.placement.node_selector.items():
            if node.labels.get(name) != value:
                return f"has no label {name}={value} (placement.nodeSelector)"
        if node.labels.get(OS_LABEL, "linux") != "linux":
            return f"runs {node.labels[OS_LABEL]}"
        if not node.ready:
            return "is not ready"
        if node.unschedulable:
            return "is cordoned"
        if taint := untolerated(node.taints, worker_tolerations(self._spec)):
            return f"has the taint {_text(taint)}, which placement.tolerations does not tolerate"
        return ""

    def _unreachable_volume(self, node: str) -> str:
        volume = self._volume
        if volume is None:
            return ""
        if volume.node_names is not None and node not in volume.node_names:
            return f"cannot reach the volume of PersistentVolumeClaim {volume.claim}"
        if single_node(volume) and volume.used_on and node not in volume.used_on:
            modes = ", ".join(volume.access_modes) or "of no access mode"
            where = ", ".join(sorted(volume.used_on))
            return f"cannot share PersistentVolumeClaim {volume.claim}: it is {modes} and in use on {where}"
        return ""


def _text(taint: Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"
