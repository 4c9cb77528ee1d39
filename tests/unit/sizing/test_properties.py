"""What must hold of every footprint, whatever the model and the numbers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.model.published import config_of, rows
from tests.unit.sizing.shapes import facts_of

from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.facts import ModelFacts, Role
from plimsoll.sizing.footprint import Configuration, Workload, footprint
from plimsoll.sizing.parallel import ParallelRefused, check_parallel, split_stages
from plimsoll.sizing.weights import loaded_bytes
from plimsoll_worker.launch import Device, Precision

several = settings(max_examples=60, deadline=None)

workloads = st.builds(
    Workload,
    max_context_tokens=st.integers(1, 131_072),
    max_sequences=st.integers(1, 512),
    max_batched_tokens=st.integers(1, 16_384),
    kv_tokens=st.none() | st.integers(1, 10_000_000),
)


PUBLISHED = {
    name: assemble_closed_form(parse_config(config_of(row)), where=name, revision="")
    for name, row in rows().items()
}


@st.composite
def models(draw: st.DrawFn) -> ModelFacts:
    """Dense models of any shape, and the published ones: mixtures, latents, windows, recurrent layers."""
    if draw(st.booleans()):
        return PUBLISHED[draw(st.sampled_from(sorted(PUBLISHED)))]
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 8]))
    return facts_of(
        model_type=draw(st.sampled_from(["llama", "mistral", "qwen3"])),
        num_hidden_layers=draw(st.integers(1, 24)),
        hidden_size=64 * draw(st.integers(1, 32)),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * draw(st.sampled_from([1, 2, 4, 7])),
        head_dim=64,
        intermediate_size=48 * draw(st.integers(1, 64)),
        vocab_size=draw(st.integers(10, 200_000)),
        tie_word_embeddings=draw(st.booleans()),
        sliding_window=draw(st.none() | st.integers(1, 8192)),
    )


@st.composite
def configurations(draw: st.DrawFn, facts: ModelFacts) -> Configuration:
    found = Configuration(
        device=Device.GPU,
        weights=draw(st.sampled_from([one for one in Precision if one.computes])),
        kv_cache=draw(st.sampled_from([one for one in Precision if one.computes])),
        tensor_parallel=draw(st.sampled_from([1, 2, 3, 4, 8])),
        pipeline_parallel=draw(st.integers(1, min(4, facts.layer_count))),
    )
    try:
        check_parallel(facts, tensor=found.tensor_parallel, pipeline=found.pipeline_parallel)
    except ParallelRefused:
        return replace(found, tensor_parallel=1)
    return found


@several
@given(st.data(), models(), workloads)
def test_more_work_never_takes_less(data: st.DataObject, facts: ModelFacts, work: Workload) -> None:
    configuration = replace(data.draw(configurations(facts)), pipeline_parallel=1)
    field = data.draw(st.sampled_from(["max_context_tokens", "max_sequences", "max_batched_tokens"]))
    more = replace(work, **{field: getattr(work, field) + data.draw(st.integers(1, 5000))})
    assert (
        footprint(facts, configuration, more).worst.total >= footprint(facts, configuration, work).worst.total
    )


@several
@given(st.data(), models(), workloads)
def test_the_ranks_together_hold_the_model_and_little_more(
    data: st.DataObject, facts: ModelFacts, work: Workload
) -> None:
    configuration = data.draw(configurations(facts))
    whole = loaded_bytes(facts, configuration.weights)
    sharded = sum(
        stage.bytes.weights * configuration.tensor_parallel
        for stage in footprint(facts, configuration, work).stages
    )
    # At most each rank repeats everything (norms, replicated KV heads), and the last stage the tied
    # embedding.
    assert whole <= sharded
    if configuration.tensor_parallel == 1:
        embedding = configuration.weights.bytes * sum(
            group.elements for group in facts.outer if group.role is Role.EMBEDDING
        )
        assert sharded - whole == (embedding if facts.tied and configuration.pipeline_parallel > 1 else 0)


@several
@given(models(), workloads, st.sampled_from([(1, 2), (2, 4), (4, 8), (1, 3)]))
def test_more_tensor_parallel_never_needs_more_on_a_rank(
    facts: ModelFacts, work: Workload, sizes: tuple[int, int]
) -> None:
    totals = []
    for tensor in sizes:
        configuration = Configuration(
            device=Device.GPU, weights=Precision.BF16, kv_cache=Precision.BF16, tensor_parallel=tensor
        )
        try:
            sized = footprint(facts, configuration, work).worst
        except ParallelRefused:
            assume(False)
        totals.append(sized.total - sized.bytes.communication)
    assert totals[1] <= totals[0]


@several
@given(st.data(), models(), workloads)
def test_every_layer_is_in_exactly_one_stage(data: st.DataObject, facts: ModelFacts, work: Workload) -> None:
    stages = footprint(facts, data.draw(configurations(facts)), work).stages
    assert [layer for stage in stages for layer in range(*stage.layers)] == list(range(facts.layer_count))
    assert all(term.bytes > 0 for stage in stages for term in stage.terms)


@several
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.integers(1, 4))
def test_no_other_cut_has_a_smaller_fullest_stage(costs: list[int], stages: int) -> None:
    assume(stages <= len(costs))
    ranges = split_stages(costs, stages)
    assert len(ranges) == stages
    assert max(sum(costs[first:last]) for first, last in ranges) == best(tuple(costs), stages)


def best(costs: tuple[int, ...], stages: int) -> int:
    """By trying every cut."""
    if stages == 1:
        return sum(costs)
    return min(
        max(sum(costs[:cut]), best(costs[cut:], stages - 1)) for cut in range(1, len(costs) - stages + 2)
    )
