"""Measured bytes in place of closed forms: exact for the same run, scaled where a neighbour differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.sizing.shapes import LLAMA_8B, facts_of, on_gpu, workload

from plimsoll.sizing.footprint import footprint
from plimsoll.sizing.profile import StageProfile, contradiction, measured_footprint
from plimsoll_worker.launch import Device, Precision, PredictedMemory

FACTS = facts_of(LLAMA_8B)
LOAD = workload(kv_tokens=65_536)
CLOSED = footprint(FACTS, on_gpu(), LOAD).worst.bytes
MEASURED = PredictedMemory(
    weights=CLOSED.weights + 30_000_000,
    kv_cache=CLOSED.kv_cache,
    activations=184_000_000,
    cuda_graphs=210_000_000,
    communication=0,
    runtime=1_237_000_000,
    fragmentation=55_000_000,
)
PROFILE = StageProfile(stage=0, measured=MEASURED, configuration=on_gpu(), workload=LOAD)


def test_the_same_run_is_predicted_exactly_as_measured() -> None:
    found = measured_footprint(FACTS, on_gpu(), LOAD, {0: PROFILE}).worst
    assert found.bytes == MEASURED
    assert sum(term.bytes for term in found.terms) == MEASURED.total
    assert {term.formula for term in found.terms} == {"measured"}


def test_more_tokens_of_cache_scale_the_cache_alone() -> None:
    doubled = replace(LOAD, kv_tokens=131_072)
    found = measured_footprint(FACTS, on_gpu(), doubled, {0: PROFILE}).worst.bytes
    assert found == MEASURED.model_copy(update={"kv_cache": 2 * MEASURED.kv_cache})


def test_a_larger_prefill_chunk_scales_activations_and_what_follows_them() -> None:
    wider = workload(batched=4096, kv_tokens=65_536)
    found = measured_footprint(FACTS, on_gpu(), wider, {0: PROFILE}).worst.bytes
    closed = footprint(FACTS, on_gpu(), wider).worst.bytes
    assert found.activations == -(-MEASURED.activations * closed.activations // CLOSED.activations)
    assert found.fragmentation > MEASURED.fragmentation
    for same in ("weights", "kv_cache", "cuda_graphs", "communication", "runtime"):
        assert getattr(found, same) == getattr(MEASURED, same)


def test_two_shards_halve_the_weights_and_bring_collectives() -> None:
    found = measured_footprint(FACTS, on_gpu(tensor=2), LOAD, {0: PROFILE}).worst.bytes
    closed = footprint(FACTS, on_gpu(tensor=2), LOAD).worst.bytes
    assert found.weights == -(-MEASURED.weights * closed.weights // CLOSED.weights)
    # Nothing was measured of collectives, so the closed form's scale has nothing to work on.
    assert closed.communication > 0
    assert found.communication == closed.communication
    assert found.runtime == MEASURED.runtime


@pytest.mark.parametrize(
    "other",
    [
        replace(on_gpu(), device=Device.CPU),
        on_gpu(Precision.FP16),
        replace(on_gpu(), kv_cache=Precision.FP16),
        on_gpu(pipeline=2),
    ],
)
def test_another_precision_device_or_number_of_stages_is_another_matter(other) -> None:  # type: ignore[no-untyped-def]
    assert PROFILE.stands_for(on_gpu(tensor=2))
    assert not PROFILE.stands_for(other)


def test_a_stage_without_a_profile_keeps_its_closed_form() -> None:
    config = on_gpu(pipeline=2)
    profile = replace(PROFILE, stage=1, configuration=config)
    found = measured_footprint(FACTS, config, LOAD, {1: profile})
    assert found.stages[0] == footprint(FACTS, config, LOAD).stages[0]
    assert found.stages[1].bytes == MEASURED


@given(
    batched=st.integers(16, 16_384),
    sequences=st.integers(1, 256),
    tensor=st.sampled_from((1, 2, 4, 8)),
)
def test_nothing_shrinks_when_more_is_asked(batched: int, sequences: int, tensor: int) -> None:
    less = workload(batched=batched, sequences=sequences)
    more = workload(batched=2 * batched, sequences=sequences + 1)
    config = on_gpu(tensor=tensor)
    small, large = (
        measured_footprint(FACTS, config, load, {0: PROFILE}).worst.bytes for load in (less, more)
    )
    for name in PredictedMemory.model_fields:
        assert getattr(small, name) <= getattr(large, name)


def test_a_ledger_that_agrees_with_the_closed_forms_is_believed() -> None:
    assert contradiction(FACTS, PROFILE) == ""
    assert contradiction(FACTS, replace(PROFILE, measured=None)) == ""


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"weights": 1}, "weights is 1 bytes where the model has 16060522496"),
        ({"kv_cache": 1 << 40}, "kv_cache is 1099511627776 bytes"),
        ({"runtime": 17 << 30}, "runtime is 18253611008 bytes, more than"),
        ({"activations": 1 << 50}, "activations is"),
    ],
)
def test_nonsense_is_told_in_words(lie: dict[str, int], told: str) -> None:
    profile = replace(PROFILE, measured=MEASURED.model_copy(update=lie))
    assert told in contradiction(FACTS, profile)


def test_a_stage_or_a_cut_that_the_model_does_not_have_is_nonsense() -> None:
    assert contradiction(FACTS, replace(PROFILE, stage=1)) == "stage 1 of 1"
    assert contradiction(FACTS, replace(PROFILE, configuration=on_gpu(tensor=7)))
