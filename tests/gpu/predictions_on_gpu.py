"""Predict first: what the operator says of configurations that nothing was fitted to, beside the card.

`python tests/gpu/predictions_on_gpu.py --out results.json` needs one NVIDIA GPU and about 20 seconds for each
configuration, each in a process of its own. The prediction is written before the worker's engine starts; then
the ledger is read at start and after mixed load, NVML watched all the while. `--device cpu` tries the script
itself on a small shape.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "operator/src"), str(ROOT / "worker/src")]

Json = dict[str, Any]
MIB = 1 << 20
LOAD_SECONDS = 10
LLAMA: Json = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}


def shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> Json:
    return {
        **LLAMA,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        **more,
    }


SHAPES = {
    "llama-3.2-1b": shape(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True, head_dim=64),
    "llama-3.2-3b": shape(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True, head_dim=128),
    "qwen2.5-7b": shape(3584, 18944, 28, 28, 4, 152064, model_type="qwen2", rms_norm_eps=1e-6),
    "mistral-7b": shape(4096, 14336, 32, 32, 8, 32768, model_type="mistral", sliding_window=None),
    "qwen3-14b": shape(5120, 17408, 40, 40, 8, 151936, model_type="qwen3", head_dim=128, rms_norm_eps=1e-6),
    "smollm2-135m": shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
}


def case(shape: str, sequences: int, context: int, batched: int) -> Json:
    return {"shape": shape, "sequences": sequences, "context": context, "batched": batched}


CASES = {
    f"{told['shape']}, {told['sequences']} x {told['context']}, chunk {told['batched']}": told
    for told in (
        case("llama-3.2-1b", 64, 8192, 2048),
        case("llama-3.2-3b", 8, 32768, 4096),
        case("qwen2.5-7b", 128, 4096, 2048),
        case("mistral-7b", 32, 16384, 8192),
        case("qwen3-14b", 16, 8192, 1024),
        case("smollm2-135m", 256, 2048, 4096),
    )
}
TINY = {"tiny": case("tiny", 4, 256, 64)}
KV_TOKENS = 131072


def predict(asked: Json, device: str) -> tuple[Json, int]:
    """Bytes by category, and the tokens of the pool."""
    from plimsoll.model.assemble import assemble_closed_form
    from plimsoll.model.config_json import parse_config
    from plimsoll.sizing.footprint import Configuration, Workload, footprint
    from plimsoll_worker.bench.shapes import SHAPES as PUBLISHED
    from plimsoll_worker.launch import Device, Precision

    config = {**(SHAPES.get(asked["shape"]) or PUBLISHED[asked["shape"]]), "torch_dtype": "bfloat16"}
    facts = assemble_closed_form(parse_config(json.dumps(config).encode()), where="config.json", revision="")
    gpu = device == "cuda"
    precision = Precision.BF16 if gpu else Precision.FP32
    kv_tokens = min(KV_TOKENS, asked["context"] * asked["sequences"])
    told = footprint(
        facts,
        Configuration(device=Device.GPU if gpu else Device.CPU, weights=precision, kv_cache=precision),
        Workload(
            max_context_tokens=asked["context"],
            max_sequences=asked["sequences"],
            max_batched_tokens=asked["batched"],
            kv_tokens=kv_tokens,
        ),
    )
    return told.worst.bytes.model_dump(by_alias=True), kv_tokens


def measure(asked: Json, device: str, kv_tokens: int) -> Json:
    import torch

    from plimsoll_worker.bench import prepare as preparing
    from plimsoll_worker.bench.offline import Offline, Request

    preparing.SHAPES = {**preparing.SHAPES, **SHAPES}
    arguments = argparse.Namespace(
        weights=None,
        kv_cache=None,
        shape=asked["shape"],
        context=asked["context"],
        sequences=asked["sequences"],
        batched_tokens=asked["batched"],
        block_size=16,
        kv_tokens=kv_tokens,
    )
    place = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    ready = preparing.prepare(arguments, place, lambda stage: None)
    start, peak, stop = ready.memory(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], ready.ledger.memory.used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    offline, began = Offline(ready.runner), time.monotonic()
    longest = asked["context"] // 2
    while time.monotonic() - began < (LOAD_SECONDS if device == "cuda" else 1):
        requests = [
            Request(1 + (997 * i) % (longest - 1), 1 + (31 * i) % 100)
            for i in range(48 if device == "cuda" else 3)
        ]
        offline.run(requests, 0.7)
    stop.set()
    watcher.join()
    return {"atStart": start, "after": ready.memory(), "peakUsedBytes": peak[0]}


def compare(predicted: Json, measured: Json) -> Json:
    """Errors in MiB, prediction less measurement; the sums leave the KV cache out."""

    def errors(found: Json) -> Json:
        return {name: round((size - found[name]) / MIB, 1) for name, size in predicted.items()}

    def rest(found: Json) -> int:
        return sum(found.values()) - found["kvCache"]

    total = measured["atStart"]["totalBytes"]
    highest = measured["peakUsedBytes"] - measured["atStart"]["bytes"]["kvCache"]
    return {
        "errorMiB": errors(measured["atStart"]["bytes"]),
        "errorAfterLoadMiB": errors(measured["after"]["bytes"]),
        "sumErrorMiB": round((rest(predicted) - rest(measured["atStart"]["bytes"])) / MIB, 1),
        "sumErrorAtPeakMiB": round((rest(predicted) - highest) / MIB, 1),
        "sumErrorAtPeakPermilleOfCard": round(1000 * (rest(predicted) - highest) / total, 1),
    }


def one(name: str, device: str, out: Path) -> None:
    asked = {**CASES, **TINY}[name]
    predicted, kv_tokens = predict(asked, device)
    result: Json = {"case": asked, "kvTokens": kv_tokens, "predicted": predicted}
    out.write_text(json.dumps(result))
    result["measured"] = measure(asked, device, kv_tokens)
    result |= compare(predicted, result["measured"])
    out.write_text(json.dumps(result))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", help="run one configuration in this process")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES), help="only these")
    arguments = parser.parse_args()
    if arguments.only:
        one(arguments.only, arguments.device, arguments.out)
        return 0
    results: Json = {}
    wanted = [name for name, told in CASES.items() if told["shape"] in arguments.shapes]
    for number, name in enumerate(wanted if arguments.device == "cuda" else TINY):
        part = arguments.out.with_suffix(f".{number}.json")
        command = [sys.executable, __file__, "--only", name, "--device", arguments.device, "--out", str(part)]
        ran = subprocess.run(command, timeout=180, capture_output=True, text=True, check=False)
        results[name] = json.loads(part.read_text()) if part.exists() else {}
        part.unlink(missing_ok=True)
        if ran.returncode:
            results[name]["failed"] = ran.stderr[-3000:]
        arguments.out.write_text(json.dumps(results, indent=1))
        told = {
            key: value for key, value in results[name].items() if key.startswith(("sum", "error", "failed"))
        }
        print(name, json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
