"""`python -m plimsoll_worker.bench offline --shape llama-3.1-8b --out results.json`
`python -m plimsoll_worker.bench serve --url http://127.0.0.1:8000 --model NAME --request-rate 4`: `serve.py`

Random weights, one device, medians of three after a run that does not count. The JSON, rewritten after every
case:

    versions   device, driver, cuda, triton, python, torch
    rates      copyBytesPerSecond (read and write), readBytesPerSecond, matmulFlopsPerSecond
    start      seconds since the process began: imported, weightsMade, compiled, warmedUp, firstToken
    memory     the ledger: bytes by category, usedBytes, line, kvCacheTokens
    cases      by name: what was asked, tokensPerSecond | seconds | outputTokensPerSecond, all (each repeat);
               of decoding also deviceSecondsPerStep and idlePermille
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from plimsoll_worker import environment
from plimsoll_worker.bench.shapes import SHAPES
from plimsoll_worker.kernels.precompile import Precompilation
from plimsoll_worker.launch import Device, Precision

CONTEXT, SEQUENCES, BATCHED, BLOCK = 9216, 256, 8192, 64
CLIENTS = max(1, min(8, len(os.sched_getaffinity(0)) // 2))
"""Client processes; the other half of the CPUs is the server's and the engine's."""

Json = dict[str, Any]


def main() -> int:
    """Measure what is asked for. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="plimsoll_worker.bench", description=__doc__)
    kinds = parser.add_subparsers(required=True)
    offline = kinds.add_parser("offline", help="the engine without its server")
    offline.add_argument("--shape", choices=list(SHAPES), required=True)
    offline.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    offline.add_argument(
        "--weights",
        choices=[precision.value for precision in Precision if not precision.computes],
        help="what matrices are rounded to; default: not at all",
    )
    offline.add_argument(
        "--kv-cache", choices=["FP8"], help="what keys and values are rounded to; default: not at all"
    )
    offline.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    offline.add_argument("--context", type=int, default=CONTEXT, help="longest context, tokens")
    offline.add_argument("--sequences", type=int, default=SEQUENCES, help="most sequences at a time")
    offline.add_argument("--batched-tokens", type=int, default=BATCHED, help="token budget of a step")
    offline.add_argument("--block-size", type=int, default=BLOCK, help="tokens of a KV block")
    offline.add_argument("--kv-tokens", type=int, help="tokens of the KV pool; default: what the card holds")
    offline.add_argument(
        "--profile", action="store_true", help="the device's time by kernel, of cases of many requests"
    )
    offline.add_argument("--without-rates", action="store_true", help="do not measure the card itself")
    offline.add_argument("--out", type=Path, help="where to write the JSON; it is printed in any case")
    offline.set_defaults(measure=measure)
    _add_serve(kinds.add_parser("serve", help="a running server, by an HTTP client"))
    arguments = parser.parse_args()
    environment.prepare()
    results = arguments.measure(arguments)
    print(json.dumps(results, indent=1))
    return 0


def measure(arguments: argparse.Namespace) -> Json:
    """All results, written to `arguments.out` as they come."""
    began = psutil.Process().create_time()
    kernels = Precompilation(Device.GPU if arguments.device == "cuda" else Device.CPU)
    import torch

    from plimsoll_worker.bench import card
    from plimsoll_worker.bench.offline import Offline, Request
    from plimsoll_worker.bench.prepare import prepare

    results: Json = {
        "shape": arguments.shape,
        "weights": arguments.weights,
        "kvCache": arguments.kv_cache,
        "start": {"imported": since(began)},
    }

    def write(**more: Any) -> None:
        results.update(more)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=1))

    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    ready = prepare(arguments, device, lambda stage: results["start"].update({stage: since(began)}), kernels)
    offline = Offline(ready.runner)
    offline.run([Request(16, 1)], 0.0)
    results["start"]["firstToken"] = since(began)
    write(versions=card.versions(device), memory=ready.memory(), cases={})
    gc.collect()
    gc.freeze()  # as a serving worker does
    for name in arguments.cases:
        case_began = time.monotonic()
        results["cases"][name] = CASES[name](offline, arguments)
        results["cases"][name]["took"] = round(time.monotonic() - case_began, 1)
        write(memoryAfter=ready.memory())
        print(name, json.dumps(results["cases"][name]), file=sys.stderr, flush=True)
    del offline, ready
    if not arguments.without_rates:
        gc.unfreeze()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write(rates=card.rates(device))
    return results


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--url", default="http://127.0.0.1:8000")
    serve.add_argument("--model", required=True, help="its served name")
    serve.add_argument("--num-prompts", type=int, default=256)
    serve.add_argument("--request-rate", type=float, default=float("inf"), help="a second; Poisson arrivals")
    serve.add_argument("--max-concurrency", type=int, help="most requests on their way at a time")
    serve.add_argument("--input-tokens", type=int, nargs=2, default=(512, 512), metavar=("FEWEST", "MOST"))
    serve.add_argument("--output-tokens", type=int, nargs=2, default=(128, 128), metavar=("FEWEST", "MOST"))
    serve.add_argument("--vocabulary", type=int, default=32000, help="prompts are token ids below")
    serve.add_argument("--temperature", type=float, default=0.0)
    serve.add_argument("--seed", type=int, default=0)
    serve.add_argument("--processes", type=int, default=CLIENTS, help="that share the load")
    serve.add_argument("--out", type=Path, help="where to write the JSON; it is printed in any case")
    serve.set_defaults(measure=_serve)


def _serve(arguments: argparse.Namespace) -> Json:
    """Load a server and write what its clients saw."""
    from plimsoll_worker.bench.serve import Load, measure

    load = Load(
        url=arguments.url,
        model=arguments.model,
        requests=arguments.num_prompts,
        request_rate=arguments.request_rate,
        max_concurrency=arguments.max_concurrency,
        prompt_tokens=tuple(arguments.input_tokens),
        answer_tokens=tuple(arguments.output_tokens),
        vocabulary=arguments.vocabulary,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    results = measure(load, arguments.processes)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1))
    return results


def since(began: float) -> float:
    """Seconds, to the hundredth."""
    return round(time.time() - began, 2)


def _decode(batch: int, context: int) -> Callable[[Any, argparse.Namespace], Json]:
    def case(offline: Any, arguments: argparse.Namespace) -> Json:
        from plimsoll_worker.bench.offline import DECODE_TOKENS, decode

        longest = arguments.context - DECODE_TOKENS - 1
        return decode(offline, batch=min(batch, arguments.sequences), context=min(context, longest))

    return case


def _prefill(tokens: int) -> Callable[[Any, argparse.Namespace], Json]:
    def case(offline: Any, arguments: argparse.Namespace) -> Json:
        from plimsoll_worker.bench.offline import prefill

        return prefill(offline, tokens=min(tokens, arguments.context - 1))

    return case


def _throughput(offline: Any, arguments: argparse.Namespace) -> Json:
    from plimsoll_worker.bench.offline import Request, throughput

    prompt, answer = (min(size, arguments.context // 2) for size in (512, 128))
    requests = [Request(prompt, answer)] * 256
    return throughput(offline, requests, temperature=0.0, profile=arguments.profile)


def _uniform(offline: Any, arguments: argparse.Namespace) -> Json:
    from plimsoll_worker.bench.offline import WORKLOAD_TEMPERATURE, Request, throughput, uniform_requests

    longest = arguments.context // 2
    requests = [Request(min(one.prompt, longest), min(one.answer, longest)) for one in uniform_requests()]
    return throughput(offline, requests, temperature=WORKLOAD_TEMPERATURE, profile=arguments.profile)


CASES: dict[str, Callable[[Any, argparse.Namespace], Json]] = {
    "decode-1": _decode(1, 128),
    "decode-32": _decode(32, 512),
    "decode-128": _decode(128, 512),
    "decode-256": _decode(256, 1024),
    "prefill-128": _prefill(128),
    "prefill-8192": _prefill(8192),
    "throughput-512-128": _throughput,
    "uniform-100-1024": _uniform,
}


if __name__ == "__main__":
    sys.exit(main())
