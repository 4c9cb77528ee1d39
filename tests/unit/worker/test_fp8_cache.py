"""Keys and values in FP8, from the launch to the answer, on a CPU."""

from __future__ import annotations

from pathlib import Path

import httpx
import torch
from tests.unit.worker.decoding import paged, sequence, steps
from tests.unit.worker.processes import WorkerProcess, smollm2_launch

from plimsoll_worker.launch import Precision, Report
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.models.decoder import Decoder

FP8 = torch.float8_e4m3fn
TEXT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Germany is"


def test_a_worker_answers_from_an_fp8_cache(smollm2: Path, tmp_path: Path) -> None:
    launch = smollm2_launch(smollm2, kv_cache=Precision.FP8)
    asked = {"model": "smollm2", "prompt": TEXT, "max_tokens": 4, "temperature": 0}
    with WorkerProcess(launch, tmp_path) as worker:
        worker.wait_until_ready()
        first, again = (
            httpx.post(f"{worker.url}/v1/completions", json=asked, timeout=120).json() for _ in range(2)
        )
        told = httpx.get(f"http://127.0.0.1:{worker.admin_port}/report", timeout=10).text
        hits = worker.metric("vllm:prefix_cache_hits_total")
    assert first["choices"][0]["text"].startswith(" Berlin")
    assert again["choices"] == first["choices"], "what the prefix cache holds is what was computed"
    assert hits > 0
    report = Report.model_validate_json(told)
    assert (report.kv_cache, report.weights) == (Precision.FP8, launch.weights)
    assert report.devices[0].bytes.kv_cache == launch.kv_cache_bytes
    assert report.kv_cache_tokens == 4 * 4 * 512, "four times as many as in FP32"


def test_chunks_and_single_tokens_read_the_same_rounded_keys(model: Decoder, tokenizer: Tokenizer) -> None:
    prompt = tuple(tokenizer.encode(TEXT))
    told = []
    for budget in (256, 8):
        runner = paged(model, blocks=8, dtype=FP8)
        found = []
        for current, logits in steps(runner, [sequence(prompt, max_tokens=8)], max_batched_tokens=budget):
            found.append(logits)
            current.append(int(logits.argmax()))
        told.append(torch.stack(found))
    assert told[0].argmax(-1).equal(told[1].argmax(-1))
    # Orders of summation differ, and a key that lies between two FP8 numbers may fall to either.
    assert (told[0] - told[1]).norm() / told[0].norm() < 0.05
