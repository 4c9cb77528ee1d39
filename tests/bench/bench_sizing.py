"""How fast a model is sized: config.json → footprint, and a thousand candidates of a 400B model.

    python -m tests.bench.bench_sizing

Exits 1 when a limit is passed: 1 ms for a footprint once the config.json is parsed, 300 ms for the
candidates.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable

from dev.hub.well_known import WELL_KNOWN
from tests.unit.model.published import config_of, rows

from plimsoll.model.assemble import assemble_closed_form
from plimsoll.model.config_json import parse_config
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.footprint import Configuration, Workload, footprint
from plimsoll_worker.launch import Device, Precision

LIMIT_FOOTPRINT_SECONDS, LIMIT_CANDIDATES_SECONDS = 0.001, 0.3
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"
CHOSEN = ("Llama-3.1-8B", "Qwen3-235B", "DeepSeek-V3", "gpt-oss-120b", "Qwen3-Next", "gemma-3-27b")


def best(call: Callable[[], object], times: int = 20) -> float:
    """The shortest of several runs, seconds: what the code takes when nothing else runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def one_footprint(facts: ModelFacts) -> None:
    """One choice of GPU."""
    footprint(
        facts, _configuration(1), Workload(max_context_tokens=8192, max_sequences=8, max_batched_tokens=2048)
    )


def candidates(facts: ModelFacts) -> int:
    """1,000 candidates: tensor and pipeline sizes, precisions, contexts, sequences."""
    done = 0
    for tensor, pipeline, weights, context, sequences in itertools.product(
        (1, 2, 4, 8, 16),
        (1, 2, 4, 8, 16),
        (Precision.BF16, Precision.FP32),
        (2048, 8192, 32768, 131072),
        (1, 8, 32, 64, 256),
    ):
        load = Workload(max_context_tokens=context, max_sequences=sequences, max_batched_tokens=2048)
        footprint(facts, _configuration(tensor, pipeline, weights), load)
        done += 1
    return done


def _configuration(tensor: int, pipeline: int = 1, weights: Precision = Precision.BF16) -> Configuration:
    return Configuration(
        device=Device.GPU,
        weights=weights,
        kv_cache=Precision.BF16,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
    )


def _well_known(name: str) -> ModelFacts:
    raw = json.dumps(WELL_KNOWN[name]).encode()
    return assemble_closed_form(parse_config(raw), where="config.json", revision="")


def main() -> int:
    """Print the figures; 1 when a limit is passed."""
    slow = False
    for name, row in rows().items():
        if any(part in name for part in CHOSEN):
            raw = config_of(row)
            blueprint = parse_config(raw)
            facts = assemble_closed_form(blueprint, where="config.json", revision="")
            parse = best(lambda raw=raw: parse_config(raw))
            form = best(lambda b=blueprint: assemble_closed_form(b, where="config.json", revision=""))
            size = best(lambda facts=facts: one_footprint(facts))
            slow |= size > LIMIT_FOOTPRINT_SECONDS
            print(
                f"{name[:36]:36} parse {parse * 1e3:6.2f} ms  closed form {form * 1e3:6.2f} ms"
                f"  footprint {size * 1e3:6.3f} ms"
            )
    large = _well_known(LLAMA_405B)
    count = candidates(large)
    taken = best(lambda: candidates(large), times=3)
    slow |= taken > LIMIT_CANDIDATES_SECONDS
    print(f"{count} candidates of {LLAMA_405B}: {taken * 1e3:.0f} ms")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
