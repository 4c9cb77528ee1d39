"""Part of parallel_on_gpu.py: ranks give the answers of one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.gpu.parallel_parts import RANKS, SHAPE, Json, answer_of


def ask_correct() -> Json:
    with tempfile.TemporaryDirectory() as folder:
        return answer_of("correct", folder, processes=RANKS)


def run_correct(folder: str, rank: str) -> None:
    """Random models in FP32: tokens with graphs equal, logits close; in BF16: how close."""
    import torch

    from plimsoll_worker.parallel.ranks import gather

    device = torch.device("cuda", int(rank))
    torch.cuda.set_device(device)
    check(folder, int(rank), gather(int(rank), RANKS, device, Path(folder, "meeting")), device)


def ask_shared() -> Json:
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        return answer_of("shared", folder, processes=RANKS)


def run_shared(folder: str, rank: str) -> None:
    """As `correct` without graphs: NCCL wants a card for each rank, and gloo is no kernel."""
    import torch
    from torch import distributed

    from plimsoll_worker.parallel.ranks import Together

    class OnOneCard(Together):
        def join_columns(self, x: torch.Tensor, width: int) -> torch.Tensor:
            parts = [torch.empty(x.shape, dtype=x.dtype) for _ in range(RANKS)]
            distributed.all_gather(parts, x.cpu())
            return torch.cat(parts, dim=1)[:, :width].to(x.device)

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    device = torch.device("cuda", 0)
    store = distributed.FileStore(str(Path(folder, "meeting")), RANKS)
    distributed.init_process_group("gloo", store=store, rank=int(rank), world_size=RANKS)
    ranks = OnOneCard(int(rank), RANKS, device)
    print("symmetric memory:", ranks._shared is not None, flush=True)
    check(folder, int(rank), ranks, device, graphs=False)


def check(folder: str, mine: int, ranks: Any, device: Any, *, graphs: bool = True) -> None:
    """Every model by two ranks and by one."""
    import torch

    from plimsoll_worker.launch import Precision

    torch.backends.cuda.matmul.allow_tf32 = False
    found: Json = {}
    models = 4 if graphs else 1
    small = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "vocab_size": 1001}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    families: dict[str, Json] = {
        "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        "llama": {"model_type": "llama"},
        "oneKeyHead": {"model_type": "llama", "num_key_value_heads": 1},
        "qwen3": {"model_type": "qwen3"},
    }
    for name, changes in list(families.items())[:models]:
        config = {**small, **heads, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, **changes}
        found[name] = compared(config, Precision.FP32, folder, mine, ranks, device, graphs)
    from plimsoll_worker.bench.shapes import SHAPES

    large = {**SHAPES[SHAPE], "num_hidden_layers": 4}
    print(json.dumps(found), flush=True)
    found["bf16, 4 layers of 8B"] = compared(large, Precision.BF16, folder, mine, ranks, device, graphs)
    if mine == 0:
        print(json.dumps(found), flush=True)
    os._exit(0)


def compared(
    config: Json, precision: Any, folder: str, rank: int, ranks: Any, device: Any, graphs: bool
) -> Json:
    from plimsoll_worker.loading.random_weights import RandomCheckpoint
    from plimsoll_worker.loading.weights import load_model
    from plimsoll_worker.parallel.position import Position

    home = Path(folder, f"model-{rank}")
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = RandomCheckpoint(home)
    layers = checkpoint.config.layer_count
    place = Position(first=0, last=layers, rank=rank, ranks=RANKS)
    model = load_model(checkpoint, device=device, precision=precision, context=1024, position=place)
    model.ranks = ranks
    tokens, logits = answers_of(model, graphs)
    if rank:
        return {}
    alone = load_model(checkpoint, device=device, precision=precision, context=1024)
    expected, wanted = answers_of(alone, graphs)
    equal = sum(a == b for a, b in zip(tokens, expected, strict=True))
    error = ((logits - wanted).norm() / wanted.norm()).item()
    return {"tokens": len(expected), "equal": equal, "relativeError": error}


def answers_of(model: Any, graphs: bool) -> tuple[list[int], Any]:
    """Greedy tokens, and logits of one prompt."""
    from plimsoll_worker.engine.block_pool import BlockPool
    from plimsoll_worker.engine.engine import Engine
    from plimsoll_worker.engine.model_runner import ModelRunner
    from plimsoll_worker.engine.rehearsal import chunk
    from plimsoll_worker.engine.scheduler import Scheduler
    from plimsoll_worker.engine.sequence import SamplingParams, Sequence
    from plimsoll_worker.layers.kv_cache import KVCache

    cache = KVCache(model.share, blocks=64, block_size=16, dtype=model.dtype, device=model.device)
    runner = ModelRunner(model, cache, max_sequences=8, max_batched_tokens=128, max_context_tokens=512)
    logits = runner.logits(chunk(60, 16)).float().cpu()
    if graphs:
        runner.capture()
    runner._tables.forget(0)
    scheduler = Scheduler(BlockPool(64, 16), max_sequences=8, max_batched_tokens=128)
    engine = Engine(runner, scheduler)
    asked = []
    for index, length in enumerate((3, 17, 40, 5, 90)):
        warm = {"temperature": 0.7, "seed": index, "top_p": 0.9} if index == 4 else {"temperature": 0.0}
        params = SamplingParams(max_tokens=24, **warm)
        asked.append(Sequence(str(index), tuple(range(index, index + length)), params, lambda _: None))
        engine.submit(asked[-1])
    engine.settle()
    return [token for each in asked for token in each.generated], logits
