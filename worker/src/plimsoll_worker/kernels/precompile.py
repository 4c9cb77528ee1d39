"""Compiles a model's kernels before they are launched: beside the loading of its weights, or while an image
is built.

    python -m plimsoll_worker.kernels.precompile --into FOLDER [--shape llama-3.1-8b …] [--card 9.0:132 …]

Compiling at the first launch, one kernel after another, was the alternative: most of a start. What is
compiled depends on the model's shape and the launch's limits, so an image can only bring the common ones;
the others are compiled by a process of its own (Triton's front end is Python and holds its lock), which finds
by itself what is there already.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from plimsoll_worker import environment
from plimsoll_worker.launch import Device, Launch, Precision
from plimsoll_worker.progress import say

if TYPE_CHECKING:
    from plimsoll_worker.config import ModelConfig
    from plimsoll_worker.engine.model_runner import ModelRunner
    from plimsoll_worker.kernels.recording import Kernel
    from plimsoll_worker.quant.form import Form

ON_STDIN = "--wanted-on-stdin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What kernels are specialised for."""

    config: ModelConfig
    weights: Precision
    """Of all that is not quantized; what is computed in."""
    forms: tuple[Form, ...] = ()
    """What matrices of layers are kept in, one or another of them; none: `weights`."""
    kv_cache: Precision
    max_sequences: int
    max_context_tokens: int
    block_size: int
    ranks: int = 1
    """Among which layers are divided."""
    capability: tuple[int, int]
    """CUDA compute capability of the card."""
    multiprocessors: int


class Precompilation:
    """A process that compiles while this one loads weights. It imports torch itself, so it starts first and
    hears later what is wanted. On a CPU there is nothing to compile."""

    def __init__(self, device: Device) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if device is Device.GPU:
            command = [sys.executable, "-m", "plimsoll_worker.kernels.precompile", ON_STDIN]
            # It must not take memory of the card.
            hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=hidden)

    def want(self, launch: Launch, config: ModelConfig, forms: Iterable[Form] = ()) -> None:
        """Begin to compile for the card that torch has made current. `forms`: of the matrices of a quantized
        checkpoint."""
        if self._process is None:
            return
        import torch

        from plimsoll_worker.quant.form import Form

        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        rounded = Form.on_load(launch.weights.name)
        wanted = Wanted(
            config=config,
            weights=launch.weights.computed_in,
            forms=tuple(dict.fromkeys(forms)) or ((rounded,) if rounded else ()),
            kv_cache=launch.kv_cache,
            max_sequences=launch.max_concurrent_sequences,
            max_context_tokens=launch.max_context_tokens,
            block_size=launch.kv_block_size,
            ranks=launch.tensor_parallel,
            capability=(card.major, card.minor),
            multiprocessors=card.multi_processor_count,
        )
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                pickle.dump(wanted, pipe)
        except BrokenPipeError:
            say("PrecompileFailed", because="it ended before it heard what is wanted")

    def wait(self) -> None:
        """Until all is compiled. What could not be is compiled when it is launched, or fails there with its
        reason."""
        if self._process is not None and (code := self._process.wait()) != 0:
            say("PrecompileFailed", code=code)


def kernels_of(wanted: Wanted) -> list[Kernel]:
    """The kernels of every decode step that has a graph, of prompts, and of sampling."""
    from plimsoll_worker.kernels.launching import Card
    from plimsoll_worker.kernels.recording import recording

    with recording(Card.of(wanted.capability, wanted.multiprocessors)) as recorded:
        for rank in range(min(wanted.ranks, 2)):  # the first adds the residual, all others are alike
            for form in wanted.forms or (None,):
                _run(_runner(wanted, rank, form), QUANTIZED_PROMPTS if form else PROMPTS)
    return list(recorded.kernels.values())


def _runner(wanted: Wanted, rank: int = 0, form: Form | None = None) -> ModelRunner:
    """A runner without memory whose matrices are kept in `form`; of layers that are alike the model has
    one."""
    import torch

    from plimsoll_worker.engine.model_runner import ModelRunner
    from plimsoll_worker.layers.kv_cache import KVCache
    from plimsoll_worker.loading.weights import DTYPES, give_memory, quantizable
    from plimsoll_worker.models.decoder import Decoder
    from plimsoll_worker.parallel.position import Position
    from plimsoll_worker.parallel.ranks import Imagined

    config = replace(wanted.config, layers=tuple(dict.fromkeys(wanted.config.layers)))
    position = Position(first=0, last=config.layer_count, rank=rank, ranks=wanted.ranks)
    with torch.device("meta"):
        model = Decoder(config, position)
    if wanted.ranks > 1:
        model.ranks = Imagined(position)
    forms = dict.fromkeys(quantizable(model), form) if form else {}
    give_memory(model, torch.device("meta"), DTYPES[wanted.weights], forms)
    model.make_ready(wanted.max_context_tokens)
    cache = KVCache(
        model.share,
        blocks=1,
        block_size=wanted.block_size,
        dtype=DTYPES[wanted.kv_cache],
        device=model.device,
    )
    return ModelRunner(
        model,
        cache,
        max_sequences=wanted.max_sequences,
        max_batched_tokens=QUANTIZED_PROMPTS[-1],
        max_context_tokens=wanted.max_context_tokens,
    )


PROMPTS = (64,)
"""Tokens of made-up prompts: more than few rows."""
QUANTIZED_PROMPTS = (32, 64, 128, 256, 512, 768, 2048, 8192)
"""Of a model with quantized matrices, whose tiles differ by rows, those of experts by the rows of each."""


def _run(runner: ModelRunner, prompts: Sequence[int]) -> None:
    import torch

    from plimsoll_worker.engine.graphs import Repeater
    from plimsoll_worker.engine.rehearsal import chunk
    from plimsoll_worker.engine.sampler import Noise, draw
    from plimsoll_worker.kernels import ops

    runner.capture(Repeater())
    for tokens in prompts:
        runner.logits(chunk(min(tokens, runner.max_context_tokens - 1), runner.cache.block_size))
    # Rows that ask for more than temperature and seed are drawn from FP32.
    with torch.device("meta"):
        rows = 1
        logits = torch.empty(rows, runner.model.config.vocab_size)
        numbers, factors = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        draw(logits, Noise(factors, numbers, numbers))
        in_prompt, in_answer = logits.to(torch.uint8), logits.to(torch.int32)
        ops.penalize(logits, numbers, in_prompt, in_answer, factors, factors, factors)


def compile_wanted(wanted: Iterable[Wanted], jobs: int) -> None:
    """Compile what is not in the cache, `jobs` at a time."""
    from plimsoll_worker.kernels.recording import compile_all

    began = time.monotonic()
    kernels = {kernel.key: kernel for each in wanted for kernel in kernels_of(each)}
    recorded = time.monotonic()
    compiled, modules = compile_all(list(kernels.values()), jobs)
    say(
        "Precompiled",
        kernels=len(kernels),
        compiled=compiled,
        modules=modules,
        jobs=jobs,
        recording_milliseconds=round(1000 * (recorded - began)),
        milliseconds=round(1000 * (time.monotonic() - began)),
    )


def shipped(shapes: Sequence[str], cards: Sequence[str]) -> list[Wanted]:
    """`shapes` of `bench.shapes` on `cards`, "9.0:132": capability and multiprocessors."""
    from plimsoll_worker.bench.shapes import SHAPES
    from plimsoll_worker.loading.config_json import config_from_folder

    made = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
            config = config_from_folder(Path(folder))
        for card, block, cache in itertools.product(cards, BLOCKS, CACHES):
            capability, multiprocessors = card.split(":")
            major, minor = capability.split(".")
            made.append(
                Wanted(
                    config=config,
                    weights=Precision.BF16,
                    kv_cache=cache,
                    max_sequences=SEQUENCES,
                    max_context_tokens=min(CONTEXT, config.max_position),
                    block_size=block,
                    capability=(int(major), int(minor)),
                    multiprocessors=int(multiprocessors),
                )
            )
    return made


BLOCKS, CACHES = (16, 64), (Precision.BF16, Precision.FP8)
SEQUENCES, CONTEXT = 256, 9216
"""Limits of a launch that shipped kernels are for. Of the sequences only small numbers matter, of the context
that it is longer than what the card is split for."""
CARDS = ("9.0:132",)
"""H100 SXM, H200, H20."""


def main() -> None:
    """Compile what stdin or the command line asks for."""
    parser = argparse.ArgumentParser(prog="plimsoll_worker.kernels.precompile", description=__doc__)
    parser.add_argument("--into", type=Path, help="folder to be filled")
    parser.add_argument("--shape", nargs="*", default=["llama-3.1-8b", "qwen3-0.6b"])
    parser.add_argument("--card", nargs="*", default=list(CARDS), help="CAPABILITY:MULTIPROCESSORS")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(ON_STDIN, action="store_true", help="a pickled Wanted; for the worker itself")
    arguments = parser.parse_args()
    if arguments.wanted_on_stdin:
        jobs = max(1, int(os.environ[environment.THREADS_ENV]) - 1)
        import_everything()
        told = sys.stdin.buffer.read()
        if told:  # else the worker has ended
            compile_wanted([pickle.loads(told)], jobs)  # noqa: S301 - the worker's own words
        return
    if arguments.into is not None:
        os.environ["TRITON_CACHE_DIR"] = str(arguments.into)
        os.environ["TRITON_STORE_BINARY_ONLY"] = "1"
    compile_wanted(shipped(arguments.shape, arguments.card), arguments.jobs)


def import_everything() -> None:
    """What takes seconds, before it is known what is wanted."""
    import plimsoll_worker.engine.model_runner
    import plimsoll_worker.kernels.recording  # noqa: F401


if __name__ == "__main__":
    main()
