"""Several GPUs of one host: what sums between them take, that the ranks answer as one does, how much faster
they are, and what communication takes of the memory. On a machine with two GPUs:

    python3 tests/gpu/parallel_on_gpu.py --out parallel.json [--parts sums correct engine worker]

Each part is a process (or two) of its own with a time limit, and prints its figures at once. Nothing here
uses NVLink multicast.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "worker/src"), str(ROOT / "operator/src"), str(ROOT)]

LIMITS = {"sums": 60, "correct": 80, "engine": 130, "worker": 110}
"""Seconds."""
SHAPE, SMALL_SHAPE = "llama-3.1-8b", "qwen3-0.6b"
RANKS = 2
CALLS = 64
"""Sums in one graph: as many as in a decode step of 32 layers."""
CASES = ((1, 512), (32, 512), (128, 256))
"""Batch and context of decoding."""
Json = dict[str, Any]


def main() -> None:
    """All parts, each by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(LIMITS))
    parser.add_argument("--run", nargs="*", help="one part, in this process")
    arguments = parser.parse_args()
    from plimsoll_worker import environment

    environment.prepare()
    if arguments.run:
        part, *rest = arguments.run
        globals()[f"run_{part}"](*rest)
        return
    found: Json = {}
    for part in arguments.parts:
        began = time.monotonic()
        found[part] = globals()[f"ask_{part}"]()
        print(part, f"{time.monotonic() - began:.0f} s", json.dumps(found[part]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def answer_of(part: str, *arguments: object, processes: int = 1) -> Json:
    """What the first of `processes` runs of a part prints last; what it said where it fails."""
    command = [sys.executable, __file__, "--run", part, *map(str, arguments)]
    ran = [
        subprocess.Popen(
            [*command, *([str(rank)] if processes > 1 else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        out, _ = ran[0].communicate(timeout=LIMITS[part])
        if ran[0].returncode == 0:
            answer: Json = json.loads(out.strip().splitlines()[-1])
            return answer
        return {"failed": ran[0].returncode, "said": out[-2500:]}
    except subprocess.TimeoutExpired:
        ran[0].kill()
        return {"failed": f"not done after {LIMITS[part]} s", "said": ran[0].communicate()[0][-2500:]}
    finally:
        for process in ran:
            process.kill()
            process.wait()


# Sums


def ask_sums() -> Json:
    with tempfile.TemporaryDirectory() as folder:
        return answer_of("sums", Path(folder, "meeting"), processes=RANKS)


def run_sums(meeting: str, rank: str) -> None:
    import torch
    from torch import distributed

    from plimsoll_worker.parallel.ranks import gather

    device = torch.device("cuda", int(rank))
    torch.cuda.set_device(device)
    ranks = gather(int(rank), RANKS, device, Path(meeting))
    shared = ranks._shared

    def timed(x: torch.Tensor, work: Any) -> float:
        """Microseconds of one of CALLS in a graph."""
        work(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(CALLS):
                work(x)
        times = []
        for _ in range(7):
            distributed.barrier()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(1000 * begin.elapsed_time(end) / CALLS)
        return round(median(times), 2)

    table = []
    if shared is not None:
        shared.limit = 8 << 20
        import torch.distributed._symmetric_memory as symmetric

        shared._memory = symmetric.empty(shared.limit, dtype=torch.uint8, device=device)
        symmetric.rendezvous(shared._memory, shared._group)
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        x = torch.zeros((rows, 4096), dtype=torch.bfloat16, device=device)
        line = {"bytes": x.nbytes, "nccl": timed(x, distributed.all_reduce)}
        if shared is not None and shared.takes(x):
            line["oneShot"] = timed(x, shared.sum)
        table.append(line)
    logits = torch.zeros((1, 64128), dtype=torch.bfloat16, device=device)
    join = timed(logits, lambda x: ranks.join_columns(x, 2 * x.shape[1]))
    print(
        json.dumps({"symmetric": shared is not None, "microseconds": table, "joinLogits": join}), flush=True
    )
    os._exit(0)


# The same answers


def ask_correct() -> Json:
    with tempfile.TemporaryDirectory() as folder:
        return answer_of("correct", folder, processes=RANKS)


def run_correct(folder: str, rank: str) -> None:
    """Random models in FP32: tokens with graphs equal, logits close; in BF16: how close."""
    import torch

    from plimsoll_worker.launch import Precision
    from plimsoll_worker.parallel.ranks import gather

    mine = int(rank)
    device = torch.device("cuda", mine)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    ranks = gather(mine, RANKS, device, Path(folder, "meeting"))
    found: Json = {}
    small = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "vocab_size": 1001}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    for name, changes in {
        "llama": {"model_type": "llama"},
        "oneKeyHead": {"model_type": "llama", "num_key_value_heads": 1},
        "qwen3": {"model_type": "qwen3"},
        "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    }.items():
        config = {**small, **heads, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, **changes}
        found[name] = compared(config, Precision.FP32, folder, mine, ranks, device)
    from plimsoll_worker.bench.shapes import SHAPES

    large = {**SHAPES[SHAPE], "num_hidden_layers": 4}
    found["bf16, 4 layers of 8B"] = compared(large, Precision.BF16, folder, mine, ranks, device)
    if mine == 0:
        print(json.dumps(found), flush=True)
    os._exit(0)


def compared(config: Json, precision: Any, folder: str, rank: int, ranks: Any, device: Any) -> Json:
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
    tokens, logits = answers_of(model)
    if rank:
        return {}
    alone = load_model(checkpoint, device=device, precision=precision, context=1024)
    expected, wanted = answers_of(alone)
    equal = sum(a == b for a, b in zip(tokens, expected, strict=True))
    error = ((logits - wanted).norm() / wanted.norm()).item()
    return {"tokens": len(expected), "equal": equal, "relativeError": error}


def answers_of(model: Any) -> tuple[list[int], Any]:
    """Greedy tokens with graphs, and logits of one prompt."""
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


# Speed and memory


def ask_engine() -> Json:
    alone, together = answer_of("engine", 1), answer_of("engine", RANKS)
    found = {"1": alone, str(RANKS): together}
    if "decode" in alone and "decode" in together:
        found["times"] = {
            case: round(together["decode"][case]["tokensPerSecond"] / one["tokensPerSecond"], 3)
            for case, one in alone["decode"].items()
        }
    return found


def launch_for(folder: Path, shape: str, count: int, *, context: int, sequences: int, batched: int) -> Any:
    """As the operator would write it."""
    import pynvml

    from plimsoll.model.read import read_facts
    from plimsoll.sizing.configuration import Configuration, Workload
    from plimsoll.sizing.footprint import footprint
    from plimsoll.sizing.runtime import line
    from plimsoll.sources import open_source
    from plimsoll_worker.bench.shapes import SHAPES
    from plimsoll_worker.launch import Device, Launch, LayerRange, Precision, WeightsScheme

    (folder / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
    facts = read_facts(open_source(str(folder)))
    pynvml.nvmlInit()
    total = int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    configuration = Configuration(
        device=Device.GPU, weights=Precision.BF16, kv_cache=Precision.BF16, tensor_parallel=count
    )
    workload = Workload(
        max_context_tokens=context,
        max_sequences=sequences,
        max_batched_tokens=batched,
        kv_tokens=max(context, sequences * 512),
    )
    stage = footprint(facts, configuration, workload).worst
    return Launch(
        plan_id="check",
        revision="check",
        model_path=str(folder),
        served_name="check",
        device=Device.GPU,
        weights=WeightsScheme.plain(Precision.BF16),
        kv_cache=Precision.BF16,
        tensor_parallel=count,
        layers=LayerRange(first=0, last=facts.layer_count),
        max_context_tokens=context,
        max_concurrent_sequences=sequences,
        max_batched_tokens=batched,
        kv_block_size=64,
        kv_cache_bytes=stage.bytes.kv_cache,
        line=line(total, 3),
        predicted=stage.bytes,
    )


def run_engine(count: str) -> None:
    from plimsoll_worker.bench import offline
    from plimsoll_worker.engine.capacity import warm_up
    from plimsoll_worker.kernels.precompile import Precompilation
    from plimsoll_worker.launch import LAUNCH_ENV, Device, Precision
    from plimsoll_worker.loading.random_weights import RandomCheckpoint
    from plimsoll_worker.loading.weights import load_model
    from plimsoll_worker.memory import open_device
    from plimsoll_worker.parallel.mirror import Orders
    from plimsoll_worker.parallel.position import Position
    from plimsoll_worker.parallel.rank_processes import COMPILED, RankProcesses

    began = time.monotonic()
    offline.REPEATS = 3
    kernels = Precompilation(Device.GPU)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch = launch_for(folder, SHAPE, int(count), context=1024, sequences=128, batched=2048)
        os.environ[LAUNCH_ENV] = launch.to_json()
        os.environ["PLIMSOLL_LOAD_FORMAT"] = "dummy"
        with RankProcesses(launch, died=lambda how: print(how, flush=True)) as processes:
            memory = open_device(Device.GPU)
            checkpoint = RandomCheckpoint(folder)
            kernels.want(launch, checkpoint.config)
            ranks = processes.gather(memory)
            model = load_model(
                checkpoint,
                device=memory.torch_device,
                precision=Precision.BF16,
                context=launch.max_context_tokens,
                position=Position.of(launch),
            )
            model.ranks = ranks
            kernels.wait()
            processes.tell(COMPILED)
            runner, ledger = warm_up(launch, model, memory, ranks.least)
            ready = time.monotonic() - began
            if int(count) > 1:
                orders, launch_here = Orders(), runner.launch

                def launch_everywhere(step: Any) -> Any:
                    processes.tell(orders.encode(step))
                    return launch_here(step)

                runner.launch = launch_everywhere  # type: ignore[method-assign]
            measured = offline.Offline(runner)
            decode = {}
            for batch, context in CASES:
                decode[f"{batch}"] = offline.decode(measured, batch=batch, context=context, tokens=96)
                print(json.dumps(decode), flush=True)
            prompt = offline.prefill(measured, tokens=1000)
            devices = [
                report.bytes.model_dump(by_alias=True) for report in (ledger.report(), *processes.reports())
            ]
            found = {
                "readySeconds": round(ready, 1),
                "decode": decode,
                "prefill": prompt,
                "predicted": launch.predicted.model_dump(by_alias=True),
                "measured": devices,
            }
            ending = time.monotonic()
        found["endSeconds"] = round(time.monotonic() - ending, 1)
    print(json.dumps(found), flush=True)
    os._exit(0)


# A worker as in a pod


def ask_worker() -> Json:
    return answer_of("worker")


def run_worker() -> None:
    """It answers, ends in order, and ends with a reason when a rank dies."""
    found: Json = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch = launch_for(folder, SMALL_SHAPE, RANKS, context=1024, sequences=16, batched=1024)
        for ending in ("told to end", "a rank is killed"):
            log = folder / "termination-log"
            log.write_text("", encoding="utf-8")
            environ = {
                **os.environ,
                "PLIMSOLL_LAUNCH": launch.to_json(),
                "PLIMSOLL_LOAD_FORMAT": "dummy",
                "PLIMSOLL_TERMINATION_LOG": str(log),
                "PYTHONPATH": os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")]),
            }
            began = time.monotonic()
            worker = subprocess.Popen([sys.executable, "-m", "plimsoll_worker"], env=environ)
            while not answers_health():
                assert worker.poll() is None, "the worker ended"
                time.sleep(0.1)
            ready = time.monotonic() - began
            body = {
                "model": "check",
                "prompt": "hello",
                "max_tokens": 32,
                "temperature": 0,
                "ignore_eos": True,
            }
            text = asked("http://127.0.0.1:8000/v1/completions", body)["choices"][0]["text"]
            devices = asked("http://127.0.0.1:8001/report")["devices"]
            began = time.monotonic()
            if ending == "told to end":
                worker.send_signal(signal.SIGTERM)
            else:
                os.kill(rank_of(worker.pid), signal.SIGKILL)
            code = worker.wait(40)
            found[ending] = {
                "readySeconds": round(ready, 1),
                "characters": len(text),
                "ranks": [device["rank"] for device in devices],
                "seconds": round(time.monotonic() - began, 1),
                "code": code,
                "reason": log.read_text(encoding="utf-8"),
            }
            print(json.dumps(found), flush=True)


def answers_health() -> bool:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def asked(url: str, body: Json | None = None) -> Json:
    request = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: Json = json.loads(answer.read())
        return found


def rank_of(pid: int) -> int:
    import psutil

    children = psutil.Process(pid).children()
    return next(child.pid for child in children if "plimsoll_worker.parallel.rank" in child.cmdline())


if __name__ == "__main__":
    main()
