"""A real worker on a real card, as its clients see it: how long until the first token, what the server costs,
how long tokens take under load, and whether the card stays under its line.

`python tests/gpu/serving_on_gpu.py --out results.json` needs one NVIDIA GPU and 32 GiB of shared memory: a
checkpoint of Llama-3.1-8B's shape with random weights is written there as safetensors, which is what the
page cache is to a pod that starts again. The kernels are compiled before, as the image brings them. `--groups
start overhead poisson forms mixed`: only some; `--shape llama-1b` is smaller; `--random` spares the
checkpoint and the kernels: the worker makes both for itself, which is the same but for its start.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from worker_on_gpu import (
    ROOT,
    SHAPES,
    VOCAB,
    get,
    in_a_process,
    launch_for,
    make_checkpoint,
    make_tokenizer,
)

Json = dict[str, Any]

URL, ADMIN = "http://127.0.0.1:8000", "http://127.0.0.1:8001"
PATHS = f"{ROOT}/operator/src:{ROOT}/worker/src"
CONTEXT, SEQUENCES, BATCHED, POOL_TOKENS = 8192, 256, 8192, 262144
"""As the benchmark without a server has them, and as the kernels in the image were compiled for."""
PROMPT, ANSWER = 512, 128
STARTS = 2
LOADS = (0.5, 0.8, 0.95)
"""Shares of the requests a second that a closed loop of SEQUENCES clients gets answered."""
LOAD_SECONDS = 12
START_SECONDS = 180
FORM_CLIENTS, NUMBERS = 32, 64


def environment() -> dict[str, str]:
    found = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{PATHS}:{found}", "HOME": "/tmp"}


def describe(folder: Path, shape: dict[str, int]) -> None:
    """What a worker needs that makes its weights itself."""
    folder.mkdir(parents=True)
    config: Json = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        **shape,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
        "eos_token_id": VOCAB - 1,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    make_tokenizer(folder, {"chat_template": template}, spaced=False)


def compile_kernels(into: Path) -> None:
    """As the image's build does."""
    command = [sys.executable, "-m", "plimsoll_worker.kernels.precompile", "--into", str(into)]
    subprocess.run([*command, "--shape", "llama-3.1-8b"], env=environment(), check=True, timeout=180)


@contextlib.contextmanager
def worker(launch: Any, kernels: Path | None, log: Path) -> Iterator[Json]:
    """A worker that answers; what its start took, in seconds since its process was made. `kernels` None: it
    makes its weights and kernels itself."""
    with log.open("wb") as output, tempfile.TemporaryDirectory() as own:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "plimsoll_worker"],
            env={
                **environment(),
                "PLIMSOLL_LAUNCH": launch.to_json(),
                **({"PLIMSOLL_KERNELS": str(kernels), "TRITON_CACHE_DIR": own} if kernels else {}),
                "PLIMSOLL_LOAD_FORMAT": "auto" if kernels else "dummy",
            },
            stdout=output,
            stderr=output,
        )
        try:
            while not healthy():
                if process.poll() is not None or time.time() - began > START_SECONDS:
                    raise RuntimeError(f"no worker, exit {process.poll()}: {log.read_text()[-4000:]}")
                time.sleep(0.02)
            took: Json = {"ready": round(time.time() - began, 2)}
            body = {"model": "check", "prompt": list(range(300, 316)), "max_tokens": 1, "temperature": 0}
            get(f"{URL}/v1/completions", body)
            took["firstToken"] = round(time.time() - began, 2)
            took["parts"] = parts(log.read_text())
            yield took
        finally:
            process.terminate()
            process.wait(timeout=60)


def healthy() -> bool:
    try:
        urllib.request.urlopen(f"{URL}/health", timeout=5).read()
    except OSError:
        return False
    return True


def parts(log: str) -> list[str]:
    """What the worker itself says of its start."""
    return [re.sub(r"^time=\S+ event=", "", line) for line in log.splitlines() if "milliseconds=" in line]


def start(launch: Any, kernels: Path | None, log: Path) -> list[Json]:
    """The first start may read Python's own files from the disk; those after it are warm."""
    found = []
    for _ in range(STARTS):
        with worker(launch, kernels, log) as took:
            found.append(took)
    return found


def load(**asked: Any) -> Json:
    """What clients of the running worker see."""
    from plimsoll_worker.bench.__main__ import CLIENTS
    from plimsoll_worker.bench.serve import Load, measure

    settings = {
        "url": URL,
        "model": "check",
        "request_rate": float("inf"),
        "max_concurrency": None,
        "prompt_tokens": (PROMPT, PROMPT),
        "answer_tokens": (ANSWER, ANSWER),
        "vocabulary": 32000,
        "temperature": 0.0,
        "seed": 0,
    }
    return measure(Load(**{**settings, **asked}), CLIENTS)


KEPT = re.compile(r"^(completed|failed|duration|(request|output)_throughput|p(50|99)_(ttft|tpot|itl)_ms)$")


def told(found: Json) -> Json:
    return {key: round(value, 3) for key, value in found.items() if KEPT.match(key)}


def overhead() -> Json:
    """One client at a time, to be laid beside `bench offline`'s cases decode-1 and prefill-128."""
    load(requests=2, max_concurrency=1, prompt_tokens=(128, 128), answer_tokens=(8, 8), seed=1)
    return told(load(requests=9, max_concurrency=1, prompt_tokens=(128, 128), answer_tokens=(129, 129)))


def poisson() -> Json:
    """The closed loop's throughput is the capacity; then shares of it, open loop."""
    load(requests=SEQUENCES, max_concurrency=SEQUENCES, seed=1)
    full = load(requests=2 * SEQUENCES, max_concurrency=SEQUENCES, seed=2)
    found = {"capacity": told(full)}
    for share in LOADS:
        rate = share * full["request_throughput"]
        found[f"{share:.0%}"] = told(load(requests=round(rate * LOAD_SECONDS), request_rate=rate, seed=3))
    return found


def forms() -> Json:
    """Answers that must follow a schema, beside as many tokens that need not."""
    schema = {
        "type": "object",
        "properties": {
            "numbers": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 9},
                "minItems": NUMBERS,
                "maxItems": NUMBERS,
            },
            "colour": {"enum": ["red", "green"]},
        },
        "required": ["numbers", "colour"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    formed = chats(max_tokens=16 * NUMBERS, response_format=asked)
    answers = [answer["choices"][0]["message"]["content"] for answer in formed["answers"]]
    tokens = round(fmean(answer["usage"]["completion_tokens"] for answer in formed["answers"]))
    free = chats(max_tokens=tokens, ignore_eos=True)
    return {
        "clients": FORM_CLIENTS,
        "valid": sum(follows(answer) for answer in answers),
        "tokensAnAnswer": tokens,
        "tokensPerSecond": formed["tokensPerSecond"],
        "tokensPerSecondWithout": free["tokensPerSecond"],
    }


def follows(text: str) -> bool:
    try:
        answer = json.loads(text)
        numbers = answer["numbers"]
    except (ValueError, KeyError):
        return False
    digits = len(numbers) == NUMBERS and all(number in range(10) for number in numbers)
    return digits and answer["colour"] in ("red", "green") and len(answer) == 2


def chats(**asked: Any) -> Json:
    """FORM_CLIENTS chats at once, twice; of the second time."""

    def chat(number: int) -> Json:
        said = [{"role": "user", "content": f"number {number}"}]
        body = {"model": "check", "messages": said, "temperature": 1.0, "seed": number, **asked}
        answer: Json = get(f"{URL}/v1/chat/completions", body)
        return answer

    with ThreadPoolExecutor(FORM_CLIENTS) as clients:
        list(clients.map(chat, range(FORM_CLIENTS)))
        began = time.monotonic()
        answers = list(clients.map(chat, range(FORM_CLIENTS)))
        took = time.monotonic() - began
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    return {"answers": answers, "tokensPerSecond": round(tokens / took, 1)}


def mixed(seconds: float) -> Json:
    """Clients of every kind for `seconds`, some of whom go away, while NVML is watched."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def used() -> int:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return int(info.used) + int(info.reserved)

    until = time.monotonic() + seconds
    answered = {"answered": 0, "wentAway": 0, "refused": 0}
    clients = [
        threading.Thread(target=client, args=(number, until, answered)) for number in range(SEQUENCES + 32)
    ]
    before = peak = used()
    for one in clients:
        one.start()
    while time.monotonic() < until:
        peak = max(peak, used())
        time.sleep(0.02)
    for one in clients:
        one.join()
    settled = time.monotonic() + 30
    while metric("vllm:num_requests_running") and time.monotonic() < settled:
        time.sleep(0.1)
    return {
        "seconds": seconds,
        "usedBefore": before,
        "peakUsed": peak,
        **answered,
        "leftRunning": metric("vllm:num_requests_running"),
        "leftWaiting": metric("vllm:num_requests_waiting"),
        "report": get(f"{ADMIN}/report")["devices"],
    }


def client(number: int, until: float, answered: dict[str, int]) -> None:
    draw = random.Random(number)
    for turn in itertools.count():
        if time.monotonic() > until:
            return
        body = ask(draw)
        request = urllib.request.Request(
            f"{URL}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        leaves = (number + turn) % 7 == 0
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                if leaves:
                    answer.readline()
                else:
                    answer.read()
            answered["wentAway" if leaves else "answered"] += 1
        except urllib.error.HTTPError:
            answered["refused"] += 1


def ask(draw: random.Random) -> Json:
    """Any lengths, any options."""
    longest = draw.choice((64, 512, 2048, 7168))
    body: Json = {
        "model": "check",
        "prompt": draw.choices(range(300, VOCAB), k=draw.randint(1, longest)),
        "max_tokens": draw.randint(1, 400),
        "temperature": draw.choice((0, 0.7, 1.0)),
        "stream": True,
        "ignore_eos": True,
    }
    rich = {"top_p": 0.9, "logprobs": 5, "presence_penalty": 0.5, "seed": 7, "min_p": 0.02}
    return body | {name: value for name, value in rich.items() if draw.random() < 0.2}


def metric(name: str) -> float:
    text = urllib.request.urlopen(f"{URL}/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-8b")
    parser.add_argument("--seconds", type=float, default=150, help="of mixed load")
    parser.add_argument("--folder", type=Path, help="keep checkpoint and kernels here for the next run")
    parser.add_argument("--random", action="store_true", help="weights are made by the worker")
    groups = ("start", "overhead", "poisson", "forms", "mixed")
    parser.add_argument("--groups", nargs="*", default=list(groups), choices=groups)
    arguments = parser.parse_args()
    results: Json = {"shape": arguments.shape}

    def note(group: str, work: Callable[[], Any]) -> None:
        results[group] = work()
        arguments.out.write_text(json.dumps(results, indent=1))
        print(group, json.dumps(results[group]), flush=True)

    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        model, kernels = folder / "model", None if arguments.random else folder / "kernels"
        if kernels is None:
            describe(model, SHAPES[arguments.shape])
        elif not model.exists():
            with ThreadPoolExecutor(1) as beside:
                compiling = beside.submit(compile_kernels, kernels)
                in_a_process(make_checkpoint, model, SHAPES[arguments.shape])
                compiling.result()
        if not arguments.groups:
            return
        launch = launch_for(
            model, context=CONTEXT, sequences=SEQUENCES, batched=BATCHED, kv_tokens=POOL_TOKENS
        )
        results["line"] = launch.line
        log = arguments.out.with_suffix(".log")
        if "start" in arguments.groups:
            note("start", lambda: start(launch, kernels, log))
        if set(arguments.groups) - {"start"}:
            with worker(launch, kernels, log):
                for group, work in (("overhead", overhead), ("poisson", poisson), ("forms", forms)):
                    if group in arguments.groups:
                        note(group, work)
                if "mixed" in arguments.groups:
                    note("mixed", lambda: mixed(arguments.seconds))


if __name__ == "__main__":
    main()
