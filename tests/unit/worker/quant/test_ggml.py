"""GGUF matrices that stay in their blocks: every number as the file has it, and the answers of the widened
model."""

from __future__ import annotations

from pathlib import Path

import gguf
import httpx
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from tests.unit.worker.decoding import paged, sequence, steps
from tests.unit.worker.parallel.threads import ThreadRank, side_by_side
from tests.unit.worker.processes import WorkerProcess, smollm2_launch
from tests.unit.worker.quant.gguf_files import HEADS, random_blocks, written

from plimsoll.model.read import read_facts
from plimsoll.sizing.configuration import Configuration, Workload
from plimsoll.sizing.footprint import footprint
from plimsoll.sizing.parallel import ParallelRefused
from plimsoll.sizing.schemes import Stored
from plimsoll.sizing.weights import loaded_bytes
from plimsoll.sources import open_source
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.kernels.matrix import QuantizedMatrix, StackedMatrix, dequantize
from plimsoll_worker.launch import GGUF, GGUF_BLOCKS, Device, Precision, Report, WeightsScheme
from plimsoll_worker.loading import gguf_matrices
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model, quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.form import Form
from plimsoll_worker.quant.ggml import BLOCK_BYTES, unpack_blocks
from plimsoll_worker.quant.stored import staying
from plimsoll_worker.selfcheck import check_effective

CPU = torch.device("cpu")
Q4_K_M = {"": "Q4_K", "attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q6_K"}
"""As llama.cpp mixes them in half of the layers."""
FILES = {
    **{kind: {"": kind} for kind in GGUF_BLOCKS},
    "Q4_K_M": Q4_K_M,
    "with types that are widened": {"": "Q4_K", "attn_k": "Q5_K", "ffn_up": "Q5_K", "token_embd": "Q8_0"},
    "layers in F32 between": {"": "Q8_0", "attn_output": "", "ffn_gate": ""},
}


LOAD = Workload(max_context_tokens=64, max_sequences=2, max_batched_tokens=64)


def on_gpu(weights: Precision, *, tensor: int = 1, pipeline: int = 1) -> Configuration:
    return Configuration(
        device=Device.GPU,
        weights=weights,
        kv_cache=weights,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        stored=True,
    )


def loaded(path: Path, *, as_stored: bool, precision: Precision = Precision.FP32) -> Decoder:
    return load_model(open_checkpoint(path), device=CPU, precision=precision, as_stored=as_stored)


def whole(model: Decoder, name: str) -> torch.Tensor:
    """A matrix of a layer in FP32, whatever it is kept in."""
    matrix = model.get_submodule(name).matrix
    parts = matrix.parts if isinstance(matrix, StackedMatrix) else (matrix,)
    return torch.cat([part if isinstance(part, torch.Tensor) else dequantize(part) for part in parts])


def logits(model: Decoder) -> torch.Tensor:
    """Of a prompt and four tokens behind it."""
    text, rows = sequence(tuple(range(1, 17)), max_tokens=4), []
    for current, row in steps(paged(model, blocks=8), [text], max_batched_tokens=64):
        rows.append(row)
        current.append(len(rows))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", GGUF_BLOCKS)
def test_every_number_is_the_one_that_the_format_says(kind: str) -> None:
    raw = random_blocks(kind, 6, 512)
    elements, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    assert BLOCK_BYTES[kind] == size
    assert elements % GGUF_BLOCKS[kind].group == 0
    expected = torch.from_numpy(gguf.dequantize(raw, GGMLQuantizationType[kind]))
    found = unpack_blocks(kind, torch.from_numpy(raw), torch.float32)
    assert torch.equal(dequantize(found), expected)
    # Exact before it is rounded to FP32 too: what is left of a sum in FP64 is what FP32 has no place for.
    assert torch.equal(dequantize(found, torch.float64).float(), expected)


@pytest.mark.parametrize("kind", GGUF_BLOCKS)
def test_memory_is_made_for_what_blocks_become(kind: str) -> None:
    raw = torch.from_numpy(random_blocks(kind, 6, 512))
    for dtype in (torch.float32, torch.bfloat16):
        made = Form.of_block(kind).make(6, 512, dtype, CPU)
        found = unpack_blocks(kind, raw, dtype)
        for part in ("numbers", "scales", "minimums"):
            one, other = getattr(made, part), getattr(found, part)
            assert (one is None) == (other is None)
            assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
        assert (made.group, made.precision, made.dtype) == (found.group, found.precision, found.dtype)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kinds", FILES.values(), ids=FILES.keys())
def test_a_model_in_blocks_is_the_widened_one(
    kinds: dict[str, str], architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "m.gguf", kinds, architecture=architecture)
    monkeypatch.setattr(gguf_matrices, "NUMBERS_AT_ONCE", 40 * 256)
    ours, wide = loaded(path, as_stored=True), loaded(path, as_stored=False)
    assert {name for name, linear in quantizable(ours).items() if linear.quantized is not None}
    for name in quantizable(wide):
        assert torch.equal(whole(ours, name), whole(wide, name)), name
    torch.testing.assert_close(logits(ours), logits(wide), rtol=1e-4, atol=1e-4)


def test_blocks_are_taken_apart_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def seen(kind: str, raw: torch.Tensor, dtype: torch.dtype) -> QuantizedMatrix:
        taken.append(len(raw))
        return unpack_blocks(kind, raw, dtype)

    monkeypatch.setattr(gguf_matrices, "unpack_blocks", seen)
    monkeypatch.setattr(gguf_matrices, "NUMBERS_AT_ONCE", 40 * 256)
    loaded(written(tmp_path / "m.gguf", Q4_K_M), as_stored=True)
    # 40 rows of 256 columns or 20 of 512; of heads, whose rows move, whole ones of 32.
    assert set(taken) == {20, 40, 32, 64 % 40, 256 % 20, 512 % 40}


def test_what_lies_in_parts_passes_the_workers_own_check(tmp_path: Path) -> None:
    model = loaded(written(tmp_path / "m.gguf", Q4_K_M, architecture="qwen2"), as_stored=True)
    parts = model.get_submodule("layers.0.self_attn.qkv_proj").matrix
    assert isinstance(parts, StackedMatrix)
    assert [part.shape for part in parts.parts] == [(256 + 64, 256), (64, 256)]
    assert parts.shape == (384, 256)
    launch = smollm2_launch(tmp_path, weights=WeightsScheme.stored(GGUF, Precision.FP32))
    check_effective(launch, model, paged(model, blocks=2).cache)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("kinds", FILES.values(), ids=FILES.keys())
def test_the_operator_counts_the_bytes_that_the_engine_keeps(
    kinds: dict[str, str], precision: Precision, tmp_path: Path
) -> None:
    path = written(tmp_path / "m.gguf", kinds, architecture="qwen2")
    facts = read_facts(open_source(str(path)))
    ours = loaded(path, as_stored=True, precision=precision)
    assert loaded_bytes(facts, Stored(precision)) == ours.weight_bytes


def positions() -> list[Position]:
    return [Position(first=0, last=2, rank=rank, ranks=2) for rank in range(2)]


@pytest.mark.parametrize("kinds", FILES.values(), ids=FILES.keys())
def test_two_ranks_have_the_model_between_them(kinds: dict[str, str], tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", kinds)
    model, facts = loaded(path, as_stored=True), read_facts(open_source(str(path)))
    head, bytes_of_a_rank = 256 // HEADS, 0
    for position in positions():
        mine = load_model(
            open_checkpoint(path), device=CPU, precision=Precision.FP32, as_stored=True, position=position
        )
        at, layer = position.rank, "layers.1"
        queries, keys = (
            range(4 * head * at, 4 * head * (at + 1)),
            range(256 + head * at, 256 + head * (at + 1)),
        )
        rows = [*queries, *keys, *(row + 2 * head for row in keys)]
        qkv = f"{layer}.self_attn.qkv_proj"
        assert torch.equal(whole(mine, qkv), whole(model, qkv)[rows])
        inner = range(256 * at, 256 * (at + 1))
        gate_up, down = f"{layer}.mlp.gate_up_proj", f"{layer}.mlp.down_proj"
        assert torch.equal(
            whole(mine, gate_up), whole(model, gate_up)[[*inner, *(row + 512 for row in inner)]]
        )
        assert torch.equal(whole(mine, down), whole(model, down)[:, inner])
        bytes_of_a_rank = max(bytes_of_a_rank, mine.weight_bytes)
    stage = footprint(facts, on_gpu(Precision.FP32, tensor=2), LOAD).worst
    assert stage.bytes.weights == bytes_of_a_rank


def test_two_ranks_answer_as_one(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", Q4_K_M)
    alone = logits(loaded(path, as_stored=True))

    def answer(ranks: ThreadRank, rank: int) -> torch.Tensor:
        mine = load_model(
            open_checkpoint(path),
            device=CPU,
            precision=Precision.FP32,
            as_stored=True,
            position=positions()[rank],
        )
        mine.ranks = ranks
        return logits(mine)

    for found in side_by_side(2, answer):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_a_stage_has_its_layers(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", Q4_K_M)
    stages = footprint(read_facts(open_source(str(path))), on_gpu(Precision.BF16, pipeline=2), LOAD).stages
    for number, stage in enumerate(stages):
        position = Position(first=stage.layers[0], last=stage.layers[1], stage=number, stages=2)
        mine = load_model(
            open_checkpoint(path), device=CPU, precision=Precision.BF16, as_stored=True, position=position
        )
        assert mine.weight_bytes == stage.bytes.weights


def test_ranks_that_would_cut_a_group_are_refused_by_both_sides(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {"": "Q4_1"}, inner=288)
    with pytest.raises(
        ModelUnsupported, match=r"mlp\.down_proj\.weight: columns 0 to 144 of a rank cut a group"
    ):
        load_model(
            open_checkpoint(path),
            device=CPU,
            precision=Precision.FP32,
            as_stored=True,
            position=positions()[0],
        )
    with pytest.raises(ParallelRefused, match="Q4_1 keeps a scale for 32 columns: 288 columns of the down"):
        footprint(read_facts(open_source(str(path))), on_gpu(Precision.BF16, tensor=2), LOAD)


def test_a_real_model_in_blocks_says_what_it_says_widened(smollm2: Path, model: Decoder) -> None:
    """SmolLM2-135M as it was published, in Q4_1."""
    ours = loaded(smollm2, as_stored=True)
    facts = read_facts(open_source(str(smollm2)))
    assert loaded_bytes(facts, Stored(Precision.FP32)) == ours.weight_bytes < model.weight_bytes / 2
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-4, atol=1e-3)


def test_what_is_planned_decides_whether_blocks_stay(tmp_path: Path) -> None:
    stored = open_checkpoint(written(tmp_path / "m.gguf", {"": "Q8_0"})).stored
    assert staying(stored, as_stored=False) is None
    assert staying(stored, as_stored=True) is stored
    assert open_checkpoint(written(tmp_path / "plain.gguf", {})).stored is None


def test_a_worker_answers_from_the_blocks_of_its_file(smollm2: Path, tmp_path: Path) -> None:
    launch = smollm2_launch(smollm2, weights=WeightsScheme.stored(GGUF, Precision.FP32))
    asked = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    with WorkerProcess(launch, tmp_path) as worker:
        worker.wait_until_ready()
        answer = httpx.post(f"{worker.url}/v1/completions", json=asked, timeout=120).json()
        told = httpx.get(f"http://127.0.0.1:{worker.admin_port}/report", timeout=10).text
    assert answer["choices"][0]["text"].startswith(" Paris")
    report = Report.model_validate_json(told)
    assert report.weights == launch.weights
    facts = read_facts(open_source(str(smollm2)))
    assert report.devices[0].bytes.weights == loaded_bytes(facts, Stored(Precision.FP32))
