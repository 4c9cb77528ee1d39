"""Plans from what was measured: exact where it ran, careful until it is trusted, for nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.planning.builders import L4, MIB, gpu_node, request, snapshot

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.api.v1alpha1.profile import Fingerprint, MemoryProfileStatus
from plimsoll.planning.plan import plan
from plimsoll.planning.profiles import StoredProfile, stage_profile
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll_worker.launch import CAPABILITIES, MeasuredMemory

NODES = [gpu_node("l4", L4, 1)]
ASKED = replace(
    request(workload={"maxConcurrentSequences": 2, "maxContextTokens": 8192, "maxBatchedTokens": 2048}),
    worker_image="worker:1",
)
"""8 billion parameters in BF16 on an L4: 20.5 GiB of 21.8."""


def planned(asked: DeploymentRequest = ASKED, *profiles: StoredProfile) -> PlanStatus | None:
    return plan(replace(snapshot(NODES, asked), profiles=profiles))[asked.uid].plan


def closed() -> PlanStatus:
    found = planned()
    assert found is not None
    return found


def stored(
    *, namespace: str = "default", margin: int = 0, grown: int = 0, engine: str = CAPABILITIES.engine_version
) -> StoredProfile:
    """The plan's own configuration, measured `grown` bytes of runtime above the prediction."""
    found = closed()
    memory = found.memory[0].predicted
    fingerprint = Fingerprint(
        model_revision="abc123",
        architecture="llama",
        engine_version=engine,
        image="worker:1",
        device=found.device,
        product=L4,
        weights=found.weights,
        compute=found.compute or found.weights,
        kv_cache=found.kv_cache,
        tensor_parallel=1,
        pipeline_parallel=1,
        stage=0,
        max_context_tokens=found.max_context_tokens,
        max_batched_tokens=found.max_batched_tokens,
        max_concurrent_sequences=2,
    )
    measured = MeasuredMemory(**memory.model_dump() | {"runtime": memory.runtime + grown})
    status = MemoryProfileStatus(
        bytes=measured, kv_cache_tokens=found.kv_cache_tokens, margin_bytes=margin, observations=1
    )
    return StoredProfile(namespace, fingerprint, stage_profile(fingerprint, status))


@pytest.mark.parametrize("grown", [-300 * MIB, 50 * MIB])
def test_the_next_plan_equals_the_measurement_to_the_byte(grown: int) -> None:
    before, profile = closed(), stored(grown=grown)
    after = planned(ASKED, profile)
    assert after is not None
    assert after.memory[0].predicted == profile.profile.measured
    assert after.memory[0].total == before.memory[0].total + grown
    assert after.kv_cache_tokens == before.kv_cache_tokens


def test_what_was_measured_larger_than_the_gpu_is_not_planned_again() -> None:
    spare = closed().memory[0].line - closed().memory[0].total
    assert planned(ASKED, stored(grown=spare)) is not None
    assert planned(ASKED, stored(grown=spare + 1)) is None


def test_a_margin_is_kept_free_and_is_no_part_of_the_prediction() -> None:
    spare = closed().memory[0].line - closed().memory[0].total
    careful = planned(ASKED, stored(margin=spare))
    assert careful is not None
    assert careful.memory[0].total == closed().memory[0].total
    assert planned(ASKED, stored(margin=spare + 1)) is None


@pytest.mark.parametrize(
    "other",
    [stored(namespace="elsewhere", grown=1 << 34), stored(engine="0.0.1", grown=1 << 34)],
    ids=["another namespace's", "another engine's"],
)
def test_other_profiles_change_nothing(other: StoredProfile) -> None:
    assert planned(ASKED, other) == closed()


def test_another_image_is_sized_by_the_closed_form() -> None:
    other = replace(ASKED, worker_image="worker:2")
    assert planned(other, stored(grown=1 << 34)) is not None


def test_what_holds_for_everybody_gives_way_to_the_namespaces_own() -> None:
    everybody, own = stored(namespace="", grown=1 << 34), stored(grown=-1)
    assert planned(ASKED, everybody) is None
    after = planned(ASKED, everybody, own)
    assert after is not None
    assert after.memory[0].predicted == own.profile.measured
