"""The engine on a real card: are graphs, batches and late reading invisible in the answers, does the ledger
explain the card, and how fast is it?

`python tests/gpu/engine_on_gpu.py --out results.json [--groups correctness ledger 8b 0.6b]` needs one NVIDIA
GPU. Each group is at most 8 minutes and in a process of its own; results are written as they come. `--device
cpu` runs the same code on small shapes, without a card to measure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "operator/src"), str(ROOT / "worker/src")]

Json = dict[str, Any]

GROUP_SECONDS = 480
ANSWER = 48
NEAR = {"fp32": 1e-3, "bf16": 0.25}
"""Of logits around 1 to 20: how far a token chosen otherwise may be behind. In BF16 two orders of summation
differ by more than many gaps between first and second."""
SMALL: dict[str, Json] = {
    "llama": {"num_key_value_heads": 2},
    "llama, one key head for three": {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "qwen3": {"num_key_value_heads": 4, "head_dim": 128},
}
CASES = (
    ("llama", "fp32"),
    ("llama", "bf16"),
    ("qwen3", "bf16"),
    ("llama, one key head for three", "bf16"),
    ("qwen3", "fp32"),
)
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ON_A_CPU = "cpu" in sys.argv
if ON_A_CPU:
    SHAPE.update(hidden_size=128, intermediate_size=256, num_hidden_layers=2, head_dim=16)
    ANSWER = 8
PROMPTS = [[(7 * i + 13 * j) % 4000 + 5 for j in range(3 + 37 * i)] for i in range(3 if ON_A_CPU else 8)]


def correctness(device: str) -> Json:
    """Small random models: transformers, the engine's plain way, and its fast way say the same."""
    results: Json = {"sampler": guarded(lambda: compare_samplers(device))}
    for name, precision in CASES[: 1 if device == "cpu" else None]:
        results[f"{name}, {precision}"] = guarded(lambda: compare(name, precision, device))  # noqa: B023
        note(results)
    return results


def compare(name: str, precision: str, device: str) -> Json:
    import torch
    import transformers

    from plimsoll_worker.engine.graphs import Repeater
    from plimsoll_worker.launch import Precision
    from plimsoll_worker.loading.checkpoint import open_checkpoint
    from plimsoll_worker.loading.weights import load_model

    torch.manual_seed(1)
    kind = "Qwen3" if name == "qwen3" else "Llama"
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **SMALL[name]})
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).to(device=device, dtype=dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        checkpoint = open_checkpoint(Path(folder))
        wanted = Precision.FP32 if precision == "fp32" else Precision.BF16
        model = load_model(checkpoint, device=torch.device(device), precision=wanted, context=1024)

    plain = make_runner(model, blocks=256)
    plain.steps_ahead = 0
    alone = [answers(plain, [prompt])[0] for prompt in PROMPTS]
    fast = make_runner(model, blocks=256)
    fast.steps_ahead = 1
    if device == "cpu":
        fast.capture(Repeater())
    else:
        fast.capture()
    together = answers(fast, PROMPTS)
    chunked = answers(fast, PROMPTS, budget=96)
    cramped_runner = make_runner(model, blocks=48)
    cramped_runner.steps_ahead = 1
    cramped = answers(cramped_runner, PROMPTS, budget=64)
    again = answers(fast, PROMPTS)
    seeded = {"temperature": 0.8, "seed": 11}
    drawn_alone = [answers(plain, [prompt], **seeded)[0] for prompt in PROMPTS]
    drawn = answers(fast, PROMPTS, **seeded)
    rich = {**seeded, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "logprobs": 5}
    rich_alone = [answers(plain, [prompt], **rich)[0] for prompt in PROMPTS]
    rich_drawn = answers(fast, PROMPTS, **rich)
    reference = [their_answer(theirs, prompt) for prompt in PROMPTS]

    def verdict(found: list[list[int]], expected: list[list[int]]) -> Json:
        gaps = [first_gap(theirs, *both) for both in zip(PROMPTS, found, expected, strict=True)]
        return {
            "equal": f"{gaps.count(None)}/{len(gaps)}",
            "gaps": [round(gap, 5) for gap in gaps if gap is not None],
            "ok": all(gap is None or gap < NEAR[precision] for gap in gaps),
        }

    return {
        "graphs, a step late, together, against alone": verdict(together, alone),
        "in chunks": verdict(chunked, alone),
        "preempted": verdict(cramped, alone),
        "the same batch again": {"equal": together == again, "ok": together == again or precision == "bf16"},
        "against transformers": verdict(alone, reference),
        "seeded draws, together against alone": share(drawn, drawn_alone, precision),
        "every option, together against alone": share(rich_drawn, rich_alone, precision),
    }


def make_runner(model: Any, *, blocks: int, block_size: int = 16) -> Any:
    from plimsoll_worker.engine.model_runner import ModelRunner
    from plimsoll_worker.layers.kv_cache import KVCache

    cache = KVCache(
        model.config, blocks=blocks, block_size=block_size, dtype=model.dtype, device=model.device
    )
    longest = min(1024, cache.tokens)
    return ModelRunner(model, cache, max_sequences=16, max_batched_tokens=1024, max_context_tokens=longest)


def answers(runner: Any, prompts: list[list[int]], budget: int = 1024, **params: Any) -> list[list[int]]:
    from plimsoll_worker.engine.block_pool import BlockPool
    from plimsoll_worker.engine.engine import Engine
    from plimsoll_worker.engine.scheduler import Scheduler
    from plimsoll_worker.engine.sequence import SamplingParams, Sequence

    pool = BlockPool(runner.cache.blocks, runner.cache.block_size)
    scheduler = Scheduler(pool, max_sequences=runner.max_sequences, max_batched_tokens=budget)
    engine = Engine(runner, scheduler)
    settings = SamplingParams(**{"max_tokens": ANSWER, "temperature": 0.0, **params})
    asked = [
        Sequence(str(number), tuple(prompt), settings, lambda event: None)
        for number, prompt in enumerate(prompts)
    ]
    for sequence in asked:
        engine.submit(sequence)
    engine.settle()
    scheduler.check_integrity()
    return [list(sequence.generated) for sequence in asked]


def their_answer(model: Any, prompt: list[int]) -> list[int]:
    import torch

    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(ids, max_new_tokens=ANSWER, do_sample=False, eos_token_id=-1, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def first_gap(model: Any, prompt: list[int], found: list[int], expected: list[int]) -> float | None:
    """How far apart transformers holds the two tokens at the first difference; None: there is none."""
    import torch

    at = next((i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]), None)
    if at is None:
        return None
    with torch.no_grad():
        logits = model(torch.tensor([prompt + expected[:at]], device=model.device)).logits[0, -1].float()
    return abs(float(logits[expected[at]] - logits[found[at]]))


def share(found: list[list[int]], expected: list[list[int]], precision: str) -> Json:
    """Of draws: rounding moves a threshold now and then, and all that follows with it."""
    equal = sum(one == other for one, other in zip(found, expected, strict=True))
    least = len(found) - 1 if precision == "fp32" else len(found) // 4
    return {"equal": f"{equal}/{len(found)}", "ok": equal >= least}


def compare_samplers(device: str) -> Json:
    """The same logits and wishes on the card and on the CPU choose the same tokens."""
    import random

    import torch

    from plimsoll_worker.engine.sampler import Noise, Sampler, sampling_position, temperature_of
    from plimsoll_worker.engine.scheduler import Scheduled
    from plimsoll_worker.engine.sequence import SamplingParams, Sequence

    drawn = random.Random(3)
    vocabulary, rows, length = 32000, 64, 40
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(5)) * 3
    tokens = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(6))
    step = []
    for row in range(rows):
        params = SamplingParams(
            max_tokens=99,
            temperature=drawn.choice([0.0, 0.5, 1.0, 1.5]),
            top_k=drawn.choice([0, 0, 5, 50]),
            top_p=drawn.choice([1.0, 0.9, 0.5]),
            min_p=drawn.choice([0.0, 0.0, 0.05]),
            repetition_penalty=drawn.choice([1.0, 1.3]),
            presence_penalty=drawn.choice([0.0, 0.5]),
            frequency_penalty=drawn.choice([0.0, 0.2]),
            logit_bias={drawn.randrange(vocabulary): 5.0} if drawn.random() < 0.3 else {},
            logprobs=drawn.choice([None, 5]),
            seed=drawn.getrandbits(62),
        )
        sequence = Sequence(str(row), tuple(tokens[row, :20].tolist()), params, lambda event: None)
        sequence.slot = row
        step.append(Scheduled(sequence, length - 1, 1, completes=True))

    def choose(place: torch.device) -> tuple[list[int], dict[int, float]]:
        def tokens_of(asking: Any) -> torch.Tensor:
            return tokens.to(place)[[part.sequence.slot for part in asking]]

        noise = Noise(
            torch.tensor([temperature_of(part.sequence.params) for part in step], device=place),
            torch.tensor([part.sequence.seed for part in step], device=place),
            torch.tensor([sampling_position(part) for part in step], device=place),
        )
        chosen = Sampler(place, tokens_of)(logits.to(place), step, noise)
        return chosen.tokens.tolist(), {row: float(told[0]) for row, told in chosen.logprobs.items()}

    (ours, our_logs), (theirs, their_logs) = choose(torch.device(device)), choose(torch.device("cpu"))
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    alike = [row for row in our_logs if ours[row] == theirs[row]]
    far = max(abs(our_logs[row] - their_logs[row]) for row in alike)
    return {"equal": f"{equal}/{rows}", "logprobs apart": far, "ok": equal >= rows - 1}


def ledger(device: str) -> Json:
    """A mid-sized shape: the ledger after the start and through mixed load, NVML watched all the while."""
    import threading

    import torch

    from plimsoll_worker.bench.offline import Offline, Request
    from plimsoll_worker.bench.prepare import prepare

    arguments = argparse.Namespace(
        weights=None,
        kv_cache=None,
        shape="tiny" if device == "cpu" else "qwen3-0.6b",
        context=512 if device == "cpu" else 8192,
        sequences=4 if device == "cpu" else 64,
        batched_tokens=128 if device == "cpu" else 4096,
        block_size=16 if device == "cpu" else 64,
        kv_tokens=2048 if device == "cpu" else 400_000,
    )
    place = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    ready = prepare(arguments, place, lambda stage: None)
    results: Json = {"atStart": ready.memory()}
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], ready.ledger.memory.used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    offline = Offline(ready.runner)
    began = time.monotonic()
    rounds = 0
    longest = arguments.context // 2
    while time.monotonic() - began < (2 if device == "cpu" else 90):
        requests = [Request(1 + (97 * i) % (longest - 1), 1 + (31 * i) % 200) for i in range(96)]
        offline.run(requests[: 8 * arguments.sequences], 0.7)
        rounds += 1
    stop.set()
    watcher.join()
    results["after"] = ready.memory()
    limit = 64 * 2**20
    unexplained = abs(results["atStart"]["bytes"]["unattributed"])
    return {
        **results,
        "rounds": rounds,
        "peakUsedBytes": peak[0],
        "ok": peak[0] <= ready.launch.line and (unexplained <= limit or device == "cpu"),
        "okAfterLoad": abs(results["after"]["bytes"]["unattributed"]) <= limit,
    }


def bench(shape: str, *extra: str) -> Callable[[str], Json]:
    """`plimsoll_worker.bench offline` in a process of its own."""

    def run(device: str) -> Json:
        small = ["--context", "512", "--sequences", "4", "--batched-tokens", "128", "--kv-tokens", "2048"]
        chosen = ["--shape", "tiny", *small, "--cases", "decode-1"] if device == "cpu" else ["--shape", shape]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [sys.executable, "-m", "plimsoll_worker.bench", "offline", "--device", device]
            process = subprocess.run(
                [*command, *chosen, *extra, "--out", str(out)],
                env={**os.environ, "PYTHONPATH": f"{ROOT}/operator/src:{ROOT}/worker/src"},
                timeout=GROUP_SECONDS,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            found = json.loads(out.read_text()) if out.exists() else {}
        print(process.stderr[-6000:], file=sys.stderr)
        return {**found, "ok": process.returncode == 0, "log": process.stderr[-3000:]}

    return run


def note(results: Json) -> None:
    """Keep what is known so far: a group that runs out of time is not lost."""
    if NOTES is not None:
        NOTES.write_text(json.dumps(results, indent=1))


def guarded(work: Callable[[], Json]) -> Json:
    """What failed is a result too: the rest is still worth knowing."""
    try:
        return work()
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        return {"ok": False, "failed": traceback.format_exc()[-3000:]}


NOTES: Path | None = None
GROUPS: dict[str, Callable[[str], Json]] = {
    "correctness": correctness,
    "ledger": ledger,
    "8b": bench("llama-3.1-8b"),
    "0.6b": bench("qwen3-0.6b"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--here", action="store_true", help="run the one group in this process")
    arguments = parser.parse_args()
    if arguments.here:
        global NOTES  # noqa: PLW0603 - one process, one group
        NOTES = arguments.out
        (group,) = arguments.groups
        arguments.out.write_text(json.dumps(guarded(lambda: GROUPS[group](arguments.device)), indent=1))
        return 0
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for group in arguments.groups:
        began = time.monotonic()
        part = arguments.out.with_suffix(f".{group}.json")
        part.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--here", "--groups", group, "--device", arguments.device]
        try:
            subprocess.run([*command, "--out", str(part)], timeout=GROUP_SECONDS + 30, check=True)
            results[group] = json.loads(part.read_text())
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            known = json.loads(part.read_text()) if part.exists() else {}
            results[group] = {**known, "ok": False, "failed": str(error)}
        results[group]["took"] = round(time.monotonic() - began, 1)
        arguments.out.write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
