"""Two stages on two GPUs of one machine against one worker on one: the same answers, the time of 64 requests.

`python tests/gpu/pipeline_on_gpu.py --out results.json` starts real workers with random weights in the shape
of Llama 3.1 8B (`--device cpu --shape ...` tries it out without a card) and loads them through their API.
Two loads, because they are bound by different things: long prompts by arithmetic, which two cards divide;
long answers by reading weights, which each of two steps in flight does for its half of the sequences.

With one GPU, `--cards 1` has both stages on it: whether they answer as one does, and nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "operator/src"), str(ROOT / "worker/src")]

from plimsoll_worker.bench.shapes import SHAPES  # noqa: E402
from plimsoll_worker.launch import (  # noqa: E402
    Device,
    Launch,
    LayerRange,
    Precision,
    PredictedMemory,
    Rendezvous,
    StageAddress,
    WeightsScheme,
)
from plimsoll_worker.loading.config_json import config_from_json  # noqa: E402

START_SECONDS = 300
REQUESTS = 64
LOADS = {"long prompts": (2048, 16), "long answers": (128, 256)}
"""Tokens in and out."""
GIB = 1 << 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launches(folder: Path, shape: str, cut: list[int], *, device: Device, kv_tokens: int) -> list[Launch]:
    """A stage for each number of layers."""
    config = config_from_json(SHAPES[shape])
    precision = Precision.BF16 if device is Device.GPU else Precision.FP32
    stages = tuple(StageAddress(host="127.0.0.1", port=free_port()) for _ in cut)
    per_token = config.kv_bytes_per_token(precision) // config.layer_count
    found = []
    for stage, count in enumerate(cut):
        first = sum(cut[:stage])
        found.append(
            Launch(
                plan_id="pipeline",
                revision="pipeline",
                model_path=str(folder),
                served_name="bench",
                device=device,
                weights=WeightsScheme.plain(precision),
                kv_cache=precision,
                pipeline_parallel=len(cut),
                stage=stage,
                layers=LayerRange(first=first, last=first + count),
                rendezvous=Rendezvous(stages=stages, seconds=START_SECONDS) if len(cut) > 1 else None,
                max_context_tokens=4096,
                max_concurrent_sequences=REQUESTS,
                max_batched_tokens=2048,
                kv_cache_bytes=kv_tokens * per_token * count,
                line=76 * GIB,
                predicted=PredictedMemory(
                    weights=0,
                    kv_cache=0,
                    activations=0,
                    cuda_graphs=GIB,
                    communication=0,
                    runtime=0,
                    fragmentation=0,
                ),
            )
        )
    return found


class Worker:
    """`python -m plimsoll_worker` on one card."""

    def __init__(self, launch: Launch, folder: Path, card: int) -> None:
        self.port = free_port()
        self._log = folder / f"{launch.pipeline_parallel}-{launch.stage}.log"
        self._environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "CUDA_VISIBLE_DEVICES": str(card),
            "PLIMSOLL_LAUNCH": launch.to_json(),
            "PLIMSOLL_LOAD_FORMAT": "dummy",
            "PLIMSOLL_SERVING_PORT": str(self.port),
            "PLIMSOLL_ADMIN_PORT": str(free_port()),
            "PLIMSOLL_DRAIN_SECONDS": "0",
        }

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "plimsoll_worker"], env=self._environ, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(self._log.read_text()[-4000:])

    def complete(self, prompt: list[int], tokens: int) -> str:
        body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body | {"ignore_eos": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            text: str = json.load(answer)["choices"][0]["text"]
            return text

    def throughput(self, tokens_in: int, tokens_out: int, out: Path) -> dict[str, Any]:
        """All requests at once, after a run that does not count."""
        command = [
            *(sys.executable, "-m", "plimsoll_worker.bench", "serve"),
            *("--url", f"http://127.0.0.1:{self.port}", "--model", "bench"),
            *("--num-prompts", str(REQUESTS), "--max-concurrency", str(REQUESTS)),
            *("--vocabulary", "512"),
            *("--input-tokens", str(tokens_in), str(tokens_in)),
            *("--output-tokens", str(tokens_out), str(tokens_out), "--out", str(out)),
        ]
        for seed in range(2):  # other prompts: the same would be found in the prefix cache
            subprocess.run(
                [*command, "--seed", str(seed)], check=True, env=self._environ, stdout=subprocess.DEVNULL
            )
        found: dict[str, Any] = json.loads(out.read_text())
        assert found["completed"] == REQUESTS, found["errors"][:3]
        return found


def measure(
    folder: Path, shape: str, cut: list[int], device: Device, kv_tokens: int, cards: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"stageLayers": cut}
    with ExitStack() as stack:
        planned = launches(folder, shape, cut, device=device, kv_tokens=kv_tokens)
        workers = [stack.enter_context(Worker(each, folder, each.stage % cards)) for each in planned]
        for worker in workers:
            worker.wait_until_ready()
        first = workers[0]
        found["answers"] = [
            first.complete([5 + at % 200 for at in range(length)], 32) for length in (3, 40, 700)
        ]
        for name, (tokens_in, tokens_out) in LOADS.items():
            found[name] = first.throughput(tokens_in, tokens_out, folder / "serve.json")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--kv-tokens", type=int, default=200_000)
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = Device.GPU if arguments.device == "cuda" else Device.CPU
    layers = config_from_json(SHAPES[arguments.shape]).layer_count
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(SHAPES[arguments.shape]))
        results = {
            str(len(cut)): measure(folder, arguments.shape, cut, device, arguments.kv_tokens, arguments.cards)
            for cut in ([layers], [layers - layers // 2, layers // 2])
        }
    same = results["1"].pop("answers") == results["2"].pop("answers")
    results["sameAnswers"] = same
    text = json.dumps(results, indent=1)
    arguments.out.write_text(text + "\n")
    print(text)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
