"""Which kinds are followed, and into which part of the state each goes."""

from __future__ import annotations

from plimsoll.actuate.ownership import OWN_SELECTOR
from plimsoll.cluster import kube as api
from plimsoll.cluster.informer import KubeSource, OptionalSource, Reflector
from plimsoll.cluster.state import ClusterState


def feeds(kube: api.Kube, state: ClusterState) -> list[Reflector]:
    """A reflector for each kind that planning or the lifecycle reads. LLMDeployments come through kopf.
    DRA, and MemoryProfiles, which an older chart of CRDs lacks, are followed where the API server serves
    them."""
    return [
        Reflector("nodes", KubeSource(kube, api.NODES), state.nodes),
        Reflector("pods", KubeSource(kube, api.PODS), state.pods),
        Reflector("claims", KubeSource(kube, api.CLAIMS), state.claims),
        Reflector("volumes", KubeSource(kube, api.VOLUMES), state.volumes),
        Reflector("slices", OptionalSource(kube, api.RESOURCE_SLICES), state.slices),
        Reflector("device-claims", OptionalSource(kube, api.RESOURCE_CLAIMS), state.device_claims),
        Reflector("priorities", KubeSource(kube, api.PRIORITIES), state.priorities),
        Reflector("profiles", OptionalSource(kube, api.PROFILES), state.profiles),
        Reflector("services", KubeSource(kube, api.SERVICES), state.services),
        Reflector("budgets", KubeSource(kube, api.BUDGETS), state.budgets),
        Reflector("revisions", KubeSource(kube, api.REVISIONS, OWN_SELECTOR), state.revisions),
    ]
