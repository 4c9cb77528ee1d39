"""Several GPUs of one host: what sums between them take, that the ranks answer as one does, how much faster
they are, and what communication takes of the memory. On a machine with two GPUs:

    python3 tests/gpu/parallel_on_gpu.py --out parallel.json [--parts sums correct engine worker]

With one GPU, what one can tell: `--parts floor shared share`. `floor` sums over a group of one, so without a
peer; `shared` has two ranks on the one card answer as one; `share` is the step of one of two ranks, its sums
over a group of one: what two cards would take but for the way between them.

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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "worker/src"), str(ROOT / "operator/src"), str(ROOT)]

from tests.gpu.parallel_answers import ask_correct, ask_shared, run_correct, run_shared  # noqa: E402
from tests.gpu.parallel_parts import RANKS, Json, answer_of  # noqa: E402
from tests.gpu.parallel_speed import (  # noqa: E402
    ask_engine,
    ask_share,
    launch_for,
    run_engine,
    run_share,
)

TWO_CARDS = ("sums", "correct", "engine", "worker")
SMALL_SHAPE = "qwen3-0.6b"
CALLS = 64
"""Sums in one graph: as many as in a decode step of 32 layers."""


def main() -> None:
    """All parts, each by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(TWO_CARDS))
    parser.add_argument("--run", nargs="*", help="one part, in this process")
    arguments = parser.parse_args()
    from plimsoll_worker import environment

    environment.prepare()
    if arguments.run:
        part, *rest = arguments.run
        PARTS[part][1](*rest)
        return
    found: Json = {}
    for part in arguments.parts:
        began = time.monotonic()
        found[part] = PARTS[part][0]()
        print(part, f"{time.monotonic() - began:.0f} s", json.dumps(found[part]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


# Sums


def ask_sums() -> Json:
    with tempfile.TemporaryDirectory() as folder:
        return answer_of("sums", Path(folder, "meeting"), processes=RANKS)


def ask_floor() -> Json:
    with tempfile.TemporaryDirectory() as folder:
        return answer_of("floor", Path(folder, "meeting"))


def run_floor(meeting: str) -> None:
    run_sums(meeting, "0", count=1)


def run_sums(meeting: str, rank: str, count: int = RANKS) -> None:
    import torch
    from torch import distributed

    from plimsoll_worker.parallel.ranks import gather

    device = torch.device("cuda", int(rank))
    torch.cuda.set_device(device)
    ranks = gather(int(rank), count, device, Path(meeting))
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


PARTS: dict[str, tuple[Callable[[], Json], Callable[..., None]]] = {
    "sums": (ask_sums, run_sums),
    "correct": (ask_correct, run_correct),
    "engine": (ask_engine, run_engine),
    "worker": (ask_worker, run_worker),
    "floor": (ask_floor, run_floor),
    "shared": (ask_shared, run_shared),
    "share": (ask_share, run_share),
}
"""What asks for a part, and what runs it in a process of its own."""


if __name__ == "__main__":
    main()
