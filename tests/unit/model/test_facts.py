"""Facts of well-known models: exact against the published counts, small enough for a termination message, and
the same sizes after packing as before."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from dev.hub.repository import Repository
from dev.hub.well_known import WELL_KNOWN, well_known
from tests.unit.model import crafted
from tests.unit.model.crafted import GGML_BYTES, Q4_K, Q6_K, MemorySource

from plimsoll.model.facts import MAX_PACKED_BYTES, FactsTooLarge, FactsUnreadable, ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.model.schema import facts_schema
from plimsoll.sizing.footprint import Configuration, Workload, footprint
from plimsoll.sizing.kv_cache import bytes_per_token
from plimsoll_worker.launch import Device, Precision

# Published: parameters as the hub counts them, tensor bytes as the index files sum them, and KV bytes of a
# token in BF16 by 2 × KV heads × head width × layers × 2 B.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": (8_030_261_248, 16_060_522_496, 131_072),
    "meta-llama/Llama-3.3-70B-Instruct": (70_553_706_496, 141_107_412_992, 327_680),
    "meta-llama/Llama-3.1-405B-Instruct": (405_853_388_800, 811_706_777_600, 516_096),
    "mistralai/Mistral-7B-Instruct-v0.3": (7_248_023_552, 14_496_047_104, 131_072),
    "mistralai/Mistral-Small-24B-Instruct-2501": (23_572_403_200, 47_144_806_400, 163_840),
    "Qwen/Qwen3-8B": (8_190_735_360, 16_381_470_720, 147_456),
    "Qwen/Qwen3-32B": (32_762_123_264, 65_524_246_528, 262_144),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (134_515_008, 269_030_016, 23_040),
    "01-ai/Yi-34B": (34_388_917_248, 68_777_834_496, 245_760),
    "openai/gpt-oss-20b": (20_914_757_184, 13_761_264_768, 24_576),
}


class RepositorySource:
    """A hub repository as a source, without the HTTP between."""

    entry = ""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.commit = repository.commit

    def files(self) -> dict[str, int]:
        return {name: file.size for name, file in self._repository.files.items()}

    def read(self, name: str, start: int, length: int) -> bytes:
        return self._repository.files[name].read(start, length)


def test_every_well_known_model_is_held_against_its_published_numbers() -> None:
    assert PUBLISHED.keys() == WELL_KNOWN.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_headers_give_the_published_parameters_and_bytes(name: str) -> None:
    facts = read_facts(RepositorySource(well_known(name)))
    parameters, tensor_bytes, kv_bytes = PUBLISHED[name]
    assert facts.parameters == parameters
    assert facts.checkpoint_bytes == tensor_bytes
    assert bytes_per_token(facts, Precision.BF16) == kv_bytes


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_from_packed_facts_equal_those_from_the_files(name: str) -> None:
    facts = read_facts(RepositorySource(well_known(name)))
    packed = facts.pack()
    assert len(packed) < MAX_PACKED_BYTES
    back = ModelFacts.unpack(packed)
    assert back == facts
    configuration = Configuration(
        device=Device.GPU, weights=Precision.BF16, kv_cache=Precision.BF16, pipeline_parallel=3
    )
    workload = Workload(max_context_tokens=4096, max_sequences=4, max_batched_tokens=1024)
    assert footprint(back, configuration, workload) == footprint(facts, configuration, workload)


def k_quant_mix(layers: int) -> list[list[int]]:
    """Q4_K_M as llama.cpp mixes it: v and down in Q6_K for the first and last eighth and every third layer
    between."""
    more = [i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2 for i in range(layers)]
    return [[Q4_K, Q4_K, Q6_K if wide else Q4_K, Q4_K, Q4_K, Q4_K, Q6_K if wide else Q4_K] for wide in more]


def wild_mix(layers: int) -> list[list[int]]:
    """Worse than any quantizer: the type of every tensor drawn for itself."""
    draw = random.Random(7)
    return [[draw.choice(list(GGML_BYTES)) for _ in range(7)] for _ in range(layers)]


@pytest.mark.parametrize(
    ("layers", "mix"), [(126, k_quant_mix), (48, wild_mix)], ids=["Q4_K_M of 126", "wild of 48"]
)
def test_the_worst_mixed_gguf_fits_a_termination_message(layers: int, mix: object) -> None:
    assert callable(mix)
    facts = read_facts(MemorySource({"mixed.gguf": crafted.llama_gguf(mix(layers))}))
    assert len(facts.layers) > layers // 3
    assert len(facts.pack()) < MAX_PACKED_BYTES
    assert ModelFacts.unpack(facts.pack()) == facts


def test_facts_that_do_not_fit_are_refused_and_never_cut() -> None:
    facts = read_facts(MemorySource({"mixed.gguf": crafted.llama_gguf(wild_mix(400))}))
    with pytest.raises(FactsTooLarge, match="different layer classes"):
        facts.pack()


@pytest.mark.parametrize(
    "text", ["", "hello", "plimsoll.facts.v2:abc", "plimsoll.facts.v1:!", "plimsoll.facts.v1:c-oCoO>5jR6#"]
)
def test_text_that_is_not_facts_is_refused(text: str) -> None:
    with pytest.raises(FactsUnreadable):
        ModelFacts.unpack(text)


def test_the_committed_schema_is_that_of_the_types() -> None:
    committed = Path("docs/schemas/model_facts.schema.json").read_text(encoding="utf-8")
    assert json.loads(committed) == json.loads(facts_schema())
