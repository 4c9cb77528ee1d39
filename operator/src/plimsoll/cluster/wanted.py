"""Which revision a resource wants now.

Beside spec and facts it is made of what ran out of memory (so that the next plan is another one, and old
replicas keep theirs) and of the annotation plimsoll.dev/replan (so that a person can have everything planned
anew). Both make a new revision, and so an ordinary roll-out.
"""

from __future__ import annotations

from plimsoll.actuate.revisions import Revision, wanted_revision
from plimsoll.api.v1alpha1 import Replan
from plimsoll.cluster.exclusions import by_basis
from plimsoll.cluster.inspection import Inspection
from plimsoll.cluster.observed import Observed


def wanted(observed: Observed, inspection: Inspection) -> Revision | None:
    """None while its model is not known."""
    if held := held_revision(observed):
        return held
    return _of_spec(observed, inspection)


def held_revision(observed: Observed) -> Revision | None:
    """The revision that stays although the spec may say otherwise: plan.replan is Manual, and nobody asked
    for a new plan since it was made."""
    spec, status = observed.resource.spec, observed.resource.status
    if spec is None or spec.plan.replan is not Replan.MANUAL:
        return None
    names = [name for name in (status.update_revision, status.current_revision) if name]
    named = {revision.name: revision for revision in observed.revisions}
    held = next((named[name] for name in names if name in named), None)
    return held if held and observed.resource.replan in ("", held.replan) else None


def is_held_back(observed: Observed, inspection: Inspection) -> bool:
    """Whether the spec says something else than the revision that stays."""
    held = held_revision(observed)
    if held is None or inspection.facts is None:
        return False
    of_spec = _of_spec(observed, inspection)
    return of_spec is not None and of_spec.fingerprint != held.fingerprint


def _of_spec(observed: Observed, inspection: Inspection) -> Revision | None:
    resource = observed.resource
    if inspection.facts is None or resource.spec is None:
        return None
    return wanted_revision(
        resource.owner,
        resource.spec,
        inspection.facts,
        observed.revisions,
        observed.worker_image,
        excluded=by_basis(observed.exclusions),
        replan=resource.replan,
    )
