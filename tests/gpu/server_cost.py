"""What the server costs by itself: CPU of a token, behind an engine that computes nothing.

`python tests/gpu/server_cost.py --step-milliseconds 12.5 --output-tokens 128` needs no GPU, but a machine
like those that have one: the engine's scheduler and the server's process run as in a worker, a step takes as
long as it is told to, and its tokens are random. To lay two versions of the server side by side, run it with
the other's `worker/src` in `--path`; the clients are always this tree's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker_on_gpu import ROOT, VOCAB, make_tokenizer

CONTEXT, BLOCK, BLOCKS, BATCHED = 8192, 16, 20_000, 8192
PROMPT = 512
OURS = str(ROOT / "worker/src")


class Due:
    """A step that is done at its time."""

    def __init__(self, at: float) -> None:
        self._at = at

    def synchronize(self) -> None:
        time.sleep(max(0.0, self._at - time.perf_counter()))


class EmptyRunner:
    """Takes a time for each step, one after the other, as a device does."""

    steps_ahead = 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._free = 0.0

    def launch(self, step: Any) -> Any:
        import torch

        from plimsoll_worker.engine.in_flight import InFlight

        self._free = max(time.perf_counter(), self._free) + self._seconds
        sequences = [part.sequence for part in step if part.completes]
        return InFlight(sequences, torch.randint(300, VOCAB, (len(sequences),)), {}, Due(self._free))


def cpu_seconds(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """CPU of a token in µs, by process, and what the clients saw."""
    import psutil

    from plimsoll_worker.engine.block_pool import BlockPool
    from plimsoll_worker.engine.engine import Engine
    from plimsoll_worker.engine.scheduler import Scheduler
    from plimsoll_worker.loading.tokenizer import tokenizer_from_folder
    from plimsoll_worker.progress import Startup
    from plimsoll_worker.server.frontend import Frontend, Service
    from plimsoll_worker.server.messages import Limits, Opened
    from plimsoll_worker.settings import Settings

    def died(message: str) -> None:
        raise RuntimeError(message)

    scheduler = Scheduler(BlockPool(BLOCKS, BLOCK), max_sequences=256, max_batched_tokens=BATCHED)
    launch: Any = SimpleNamespace(served_name="check")
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Frontend(launch, Settings(serving_port=0, admin_port=0), Startup(), died) as frontend,
    ):
        make_tokenizer(Path(folder), {})
        frontend.speak(tokenizer_from_folder(Path(folder)))
        runner = EmptyRunner(arguments.step_milliseconds / 1000)
        engine = Engine(runner, scheduler, stepped=frontend.stepped)
        limits = Limits(
            context=CONTEXT, vocabulary=VOCAB, eos_token_ids=frozenset(), sequences=engine.max_live
        )
        opened = Opened(limits=limits, block_size=BLOCK, blocks=BLOCKS)
        frontend.open(Service(engine, opened, lambda: None))  # type: ignore[arg-type,return-value]

        def load() -> None:
            try:
                ours = psutil.Process()
                (server,) = ours.children()
                clients(frontend.ports[0], 256, 8)
                before = cpu_seconds(server), cpu_seconds(ours)
                seen = clients(frontend.ports[0], arguments.requests, arguments.output_tokens)
                after = cpu_seconds(server), cpu_seconds(ours)
                used = {"server": after[0] - before[0], "engine": after[1] - before[1]}
                used["clients"] = seen["client_cpu_seconds"]
                tokens = seen["total_output_tokens"]
                found.update(
                    {f"{name}MicrosecondsAToken": 1e6 * spent / tokens for name, spent in used.items()}
                )
                found.update({name: seen[name] for name in ("output_throughput", "p50_itl_ms", "failed")})
            finally:
                engine.drain(0)

        threading.Thread(target=load).start()
        engine.run()
    return found


def clients(port: int, requests: int, answer: int) -> dict[str, float]:
    """A closed loop of 256, in processes of its own and by this tree's client."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            sys.executable,
            "-m",
            "plimsoll_worker.bench",
            "serve",
            "--model",
            "check",
            "--out",
            str(out),
        ]
        asked = {
            "--url": f"http://127.0.0.1:{port}",
            "--num-prompts": requests,
            "--max-concurrency": 256,
            "--seed": answer,
        }
        pairs = [word for name, value in asked.items() for word in (name, str(value))]
        lengths = ["--input-tokens", *[str(PROMPT)] * 2, "--output-tokens", *[str(answer)] * 2]
        environment = {**os.environ, "PYTHONPATH": f"{OURS}:{os.environ.get('PYTHONPATH', '')}"}
        subprocess.run([*command, *pairs, *lengths], check=True, env=environment, stdout=subprocess.DEVNULL)
        seen: dict[str, float] = json.loads(out.read_text())
        return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-milliseconds", type=float, default=12.5)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--path", default=OURS, help="worker/src of the server to be measured")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.path)
    os.environ["PYTHONPATH"] = f"{arguments.path}:{os.environ.get('PYTHONPATH', '')}"
    print(json.dumps({name: round(value, 1) for name, value in measure(arguments).items()}))


if __name__ == "__main__":
    main()
