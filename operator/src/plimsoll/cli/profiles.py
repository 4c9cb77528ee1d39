"""MemoryProfiles from a file (`kubectl get memoryprofiles -A -o yaml`), for plans without a cluster."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from plimsoll.api.v1alpha1 import LLMDeploymentSpec
from plimsoll.api.v1alpha1.profile import PROFILE_KIND, MemoryProfile
from plimsoll.cli.manifests import read_objects
from plimsoll.cli.output import BadInputError
from plimsoll.planning.profiles import StoredProfile, stage_profile


def read_profiles(path: Path, spec: LLMDeploymentSpec) -> tuple[StoredProfile, ...]:
    """What the file tells, believed for every namespace: whoever names it vouches for it. Where the spec
    names no worker image, the one that was measured is taken to be its. Raises BadInputError naming the file
    and the field."""
    found = read_objects([path]).of(PROFILE_KIND)
    if not found:
        raise BadInputError(f"--profiles: {path}: no objects of kind {PROFILE_KIND}")
    stored = []
    for obj in found:
        try:
            profile = MemoryProfile.model_validate(
                {key: obj[key] for key in ("spec", "status") if key in obj}
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadInputError(
                f"--profiles: {path}: {obj['metadata']['name']}: {where}: {first['msg']}"
            ) from error
        fingerprint = profile.spec.fingerprint
        if not spec.engine.image:
            fingerprint = fingerprint.model_copy(update={"image": ""})
        stored.append(StoredProfile("", fingerprint, stage_profile(fingerprint, profile.status)))
    return tuple(stored)
