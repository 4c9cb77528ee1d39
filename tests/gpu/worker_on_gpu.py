"""The worker on a real card: does it run what a plan says, answer like `transformers`, stay under its line?

`python tests/gpu/worker_on_gpu.py --out report.json` needs one NVIDIA GPU and nothing else: it makes
checkpoints with random weights (memory and speed do not depend on values), plans them with the operator's own
sizing, starts the worker as a pod would, and compares. Not part of `make test`, which runs where no GPU is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "operator/src"), str(ROOT / "worker/src")]

SHAPES: dict[str, dict[str, int]] = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
VOCAB = 128_256
CONTEXT, SEQUENCES, BATCHED = 4096, 8, 2048
PROMPTS = [[(7 * i + 13 * j) % 1000 + 300 for j in range(12 + 5 * i)] for i in range(8)]
NEW_TOKENS = 32
START_SECONDS = 120


def make_checkpoint(folder: Path, shape: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        **shape,
    )
    config.eos_token_id = None
    config.bos_token_id = None
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.to("cpu").save_pretrained(folder)
    make_tokenizer(folder, {})


def make_tokenizer(folder: Path, settings: dict[str, Any], *, spaced: bool = True) -> None:
    """Bytes, and a word for each of the other tokens of VOCAB; `settings`: of tokenizer_config.json;
    `spaced`: texts have a blank between tokens, which is no text that a grammar could be held to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    vocabulary |= {f"<{index}>": index for index in range(len(alphabet), VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not spaced:
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def reference(folder: Path) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens of `transformers` and, for each, how far its logit was above the second."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
    answers = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt], device="cuda"),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        margins = []
        for logits in out.logits:
            top = logits[0].float().topk(2).values
            margins.append(float(top[0] - top[1]))
        answers.append((out.sequences[0, len(prompt) :].tolist(), margins))
    del model
    torch.cuda.empty_cache()
    return answers


def checkpoint_and_reference(folder: Path, shape: dict[str, int]) -> list[tuple[list[int], list[float]]]:
    make_checkpoint(folder, shape)
    return reference(folder)


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of `work` from a process that is gone afterwards: its CUDA context would count."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def launch_for(
    folder: Path,
    *,
    context: int = CONTEXT,
    sequences: int = SEQUENCES,
    batched: int = BATCHED,
    kv_tokens: int | None = None,
) -> Any:
    import pynvml

    from plimsoll.model.read import read_facts
    from plimsoll.sizing.footprint import Configuration, Workload, footprint
    from plimsoll.sizing.runtime import line
    from plimsoll.sources import open_source
    from plimsoll_worker.launch import Device, Launch, LayerRange, Precision, WeightsScheme

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    stored = any(folder.glob("*.safetensors"))
    facts = read_facts(open_source(str(folder if stored else folder / "config.json")))
    configuration = Configuration(device=Device.GPU, weights=Precision.BF16, kv_cache=Precision.BF16)
    workload = Workload(
        max_context_tokens=context,
        max_sequences=sequences,
        max_batched_tokens=batched,
        kv_tokens=kv_tokens,
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
        layers=LayerRange(first=0, last=facts.layer_count),
        max_context_tokens=context,
        max_concurrent_sequences=sequences,
        max_batched_tokens=batched,
        kv_cache_bytes=stage.bytes.kv_cache,
        line=line(total, 3),
        predicted=stage.bytes,
    )


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read() or b"null")


def run_worker(launch: Any, expected: list[tuple[list[int], list[float]]], log: Path) -> dict[str, Any]:
    environment = os.environ | {
        "PLIMSOLL_LAUNCH": launch.to_json(),
        "PYTHONPATH": f"{ROOT}/operator/src:{ROOT}/worker/src",
        "HOME": "/tmp",
    }
    started = time.monotonic()
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "plimsoll_worker"], env=environment, stdout=output, stderr=output
        )
    try:
        while True:
            if worker.poll() is not None or time.monotonic() - started > START_SECONDS:
                return {"failed": f"not ready, exit {worker.poll()}", "log": log.read_text()[-4000:]}
            try:
                urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=5).read()
                break
            except OSError:
                time.sleep(0.2)
        ready = time.monotonic() - started
        differences = []
        seconds = []
        for prompt, (tokens, margins) in zip(PROMPTS, expected, strict=True):
            asked = time.monotonic()
            answer = get(
                "http://127.0.0.1:8000/v1/completions",
                {
                    "model": "check",
                    "prompt": prompt,
                    "max_tokens": NEW_TOKENS,
                    "temperature": 0,
                },
            )
            seconds.append(time.monotonic() - asked)
            wanted = [f"<{token}>" for token in tokens]  # the tokenizer above writes every token so
            found = answer["choices"][0]["text"].split()
            at = next(
                (i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None
            )
            if at is not None or len(found) != NEW_TOKENS:
                differences.append({"at": at, "length": len(found), "margin": margins[at or 0]})
        return {
            "secondsToReady": round(ready, 2),
            "equalAnswers": f"{len(PROMPTS) - len(differences)}/{len(PROMPTS)}",
            "firstDifferences": differences,
            "tokensPerSecondAlone": round(NEW_TOKENS / sorted(seconds)[len(seconds) // 2], 1),
            "report": get("http://127.0.0.1:8001/report"),
        }
    finally:
        worker.kill()
        worker.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    arguments = parser.parse_args()
    results: dict[str, Any] = {"gpu": in_a_process(gpu_name), "shapes": {}}
    for name in arguments.shapes:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            expected = in_a_process(checkpoint_and_reference, Path(folder), SHAPES[name])
            launch = launch_for(Path(folder))
            results["shapes"][name] = {
                "predicted": json.loads(launch.predicted.to_json()),
                "line": launch.line,
            } | run_worker(launch, expected, arguments.out.with_suffix(f".{name}.log"))
            arguments.out.write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
