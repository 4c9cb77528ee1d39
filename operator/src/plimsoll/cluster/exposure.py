"""What clients reach a deployment by, compared with what is there."""

from __future__ import annotations

from plimsoll.actuate import services
from plimsoll.actuate.diff import compare
from plimsoll.api.v1alpha1 import LLMDeploymentSpec
from plimsoll.cluster.observed import Object, Observed


def exposure(observed: Observed, spec: LLMDeploymentSpec) -> list[tuple[Object, str]]:
    """The Services that are missing or say something else, and where they differ."""
    owner = observed.resource.owner
    found: list[tuple[Object, str]] = []
    for body in (services.service(owner, spec), services.headless_service(owner)):
        there = observed.services.get(body["metadata"]["name"])
        difference = compare({"metadata": body["metadata"], "spec": body["spec"]}, there or {})
        if not difference.equal:
            found.append((body, difference.first if there else "it is missing"))
    return found


def missing_services(observed: Observed, spec: LLMDeploymentSpec) -> list[str]:
    """Names of Services that are not there: without them nobody reaches a replica that is ready."""
    bodies = [body for body, _ in exposure(observed, spec)]
    return [name for body in bodies if (name := body["metadata"]["name"]) not in observed.services]
