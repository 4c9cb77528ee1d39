"""What stands around the pods of a deployment, compared with what is there: the Services that clients reach
it by, and the budget that drains keep to.

An object of somebody else that has the name of one of them is told, and left as it is: its clients did not
ask for a model.
"""

from __future__ import annotations

from collections.abc import Iterator

from plimsoll.actuate import services
from plimsoll.actuate.diff import compare
from plimsoll.actuate.disruption import keeps_any, pod_disruption_budget
from plimsoll.api.v1alpha1 import LLMDeploymentSpec
from plimsoll.cluster.observed import ApplyObject, Object, Observed
from plimsoll.cluster.targets import Target


def exposure(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> list[ApplyObject]:
    """What is missing or says something else, and where it differs."""
    found: list[ApplyObject] = []
    for body, there in _around(observed, spec, target):
        if there and not _owned(there, observed):
            continue
        difference = compare({"metadata": body["metadata"], "spec": body["spec"]}, there or {})
        if not difference.equal:
            why = difference.first if there else "it is missing"
            found.append(ApplyObject(body, why, exists=there is not None))
    return found


def has_services(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> bool:
    """Whether a replica that is ready is reached by anybody."""
    bodies = _services(observed, spec, target)
    there = (observed.services.get(body["metadata"]["name"]) for body in bodies)
    return all(one and _owned(one, observed) for one in there)


def taken(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> str:
    """Which names somebody else's objects have, and what to do; empty when none."""
    what = [
        f"{body['kind']} {body['metadata']['name']}"
        for body, there in _around(observed, spec, target)
        if there and not _owned(there, observed)
    ]
    if not what:
        return ""
    belongs, it = ("exists and does", "it") if len(what) == 1 else ("exist and do", "them")
    return (
        f"{' and '.join(what)} {belongs} not belong to this LLMDeployment; nothing of {it} was changed. "
        f"Delete {it}, and ours follows at once; or give the LLMDeployment another name"
    )


def _owned(there: Object, observed: Observed) -> bool:
    refs = there["metadata"].get("ownerReferences") or ()
    return any(ref.get("uid") == observed.resource.uid for ref in refs)


def _around(
    observed: Observed, spec: LLMDeploymentSpec, target: Target
) -> Iterator[tuple[Object, Object | None]]:
    """Each object as it should be, and what has its name."""
    for body in _services(observed, spec, target):
        yield body, observed.services.get(body["metadata"]["name"])
    stages = min((plan.pipeline_parallel for plan in target.plans), default=1)
    budget = pod_disruption_budget(observed.resource.owner, spec.replicas, stages)
    there = observed.budgets.get(budget["metadata"]["name"])
    if target.plans and (keeps_any(budget) or (there and _owned(there, observed))):
        yield budget, there


def _services(observed: Observed, spec: LLMDeploymentSpec, target: Target) -> Iterator[Object]:
    """Workers look for each other only where a replica has several pods."""
    owner = observed.resource.owner
    yield services.service(owner, spec)
    if any(plan.pipeline_parallel > 1 for plan in target.plans):
        yield services.headless_service(owner)
