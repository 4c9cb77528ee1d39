"""What stands around the pods of a deployment, compared with what is there: the Services that clients reach
it by, and the budget that drains keep to."""

from __future__ import annotations

from collections.abc import Iterable

from plimsoll.actuate import services
from plimsoll.actuate.diff import compare
from plimsoll.actuate.disruption import keeps_any, pod_disruption_budget
from plimsoll.api.v1alpha1 import LLMDeploymentSpec
from plimsoll.cluster.observed import ApplyObject, Object, Observed
from plimsoll.cluster.targets import Target


def exposure(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> list[ApplyObject]:
    """What is missing or says something else, and where it differs."""
    owner = observed.resource.owner
    budget = pod_disruption_budget(
        owner,
        spec.replicas,
        min((plan.pipeline_parallel for plan in target.plans), default=1),
    )
    bodies = [(body, observed.services) for body in _services(observed, spec, target)]
    if target.plans and (keeps_any(budget) or owner.name in observed.budgets):
        bodies.append((budget, observed.budgets))
    found: list[ApplyObject] = []
    for body, known in bodies:
        there = known.get(body["metadata"]["name"])
        difference = compare({"metadata": body["metadata"], "spec": body["spec"]}, there or {})
        if not difference.equal:
            found.append(ApplyObject(body, difference.first if there else "it is missing"))
    return found


def has_services(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> bool:
    """Whether a replica that is ready is reached by anybody."""
    return all(body["metadata"]["name"] in observed.services for body in _services(observed, spec, target))


def _services(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> Iterable[Object]:
    """Workers look for each other only where a replica has several pods."""
    owner = observed.resource.owner
    yield services.service(owner, spec)
    if any(plan.pipeline_parallel > 1 for plan in target.plans):
        yield services.headless_service(owner)
