"""Part of parallel_on_gpu.py: how fast several ranks are, and what they keep on their cards."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.gpu.parallel_parts import RANKS, SHAPE, Json, answer_of

CASES = ((1, 512), (32, 512), (128, 256))
"""Batch and context of decoding."""


def ask_engine() -> Json:
    alone, together = answer_of("engine", 1), answer_of("engine", RANKS)
    found = {"1": alone, str(RANKS): together}
    if "decode" in alone and "decode" in together:
        found["times"] = {
            case: round(together["decode"][case]["tokensPerSecond"] / one["tokensPerSecond"], 3)
            for case, one in alone["decode"].items()
        }
    return found


def launch_for(folder: Path, shape: str, count: int, *, context: int, sequences: int, batched: int) -> Any:
    """As the operator would write it."""
    import pynvml

    from plimsoll.model.assemble import assemble_closed_form
    from plimsoll.model.config_json import parse_config
    from plimsoll.sizing.configuration import Configuration, Workload
    from plimsoll.sizing.footprint import footprint
    from plimsoll.sizing.runtime import line
    from plimsoll_worker.bench.shapes import SHAPES
    from plimsoll_worker.launch import Device, Launch, LayerRange, Precision, WeightsScheme

    config = json.dumps({**SHAPES[shape], "torch_dtype": "bfloat16"})
    (folder / "config.json").write_text(config, encoding="utf-8")
    facts = assemble_closed_form(parse_config(config.encode()), where="config.json", revision="")
    pynvml.nvmlInit()
    total = int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    configuration = Configuration(
        device=Device.GPU, weights=Precision.BF16, kv_cache=Precision.BF16, tensor_parallel=count
    )
    workload = Workload(
        max_context_tokens=context,
        max_sequences=sequences,
        max_batched_tokens=batched,
        kv_tokens=max(context, sequences * 512),
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
        tensor_parallel=count,
        layers=LayerRange(first=0, last=facts.layer_count),
        max_context_tokens=context,
        max_concurrent_sequences=sequences,
        max_batched_tokens=batched,
        kv_block_size=64,
        kv_cache_bytes=stage.bytes.kv_cache,
        line=line(total, 3),
        predicted=stage.bytes,
    )


def run_engine(count: str) -> None:
    from plimsoll_worker.bench import offline
    from plimsoll_worker.engine.capacity import warm_up
    from plimsoll_worker.kernels.precompile import Precompilation
    from plimsoll_worker.launch import LAUNCH_ENV, Device, Precision
    from plimsoll_worker.loading.random_weights import RandomCheckpoint
    from plimsoll_worker.loading.weights import load_model
    from plimsoll_worker.memory import open_device
    from plimsoll_worker.parallel.mirror import Orders
    from plimsoll_worker.parallel.position import Position
    from plimsoll_worker.parallel.rank_processes import COMPILED, RankProcesses

    began = time.monotonic()
    offline.REPEATS = 3
    kernels = Precompilation(Device.GPU)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch = launch_for(folder, SHAPE, int(count), context=1024, sequences=128, batched=2048)
        os.environ[LAUNCH_ENV] = launch.to_json()
        os.environ["PLIMSOLL_LOAD_FORMAT"] = "dummy"
        with RankProcesses(launch, died=lambda how: print(how, flush=True)) as processes:
            memory = open_device(Device.GPU)
            checkpoint = RandomCheckpoint(folder)
            kernels.want(launch, checkpoint.config)
            ranks = processes.gather(memory)
            model = load_model(
                checkpoint,
                device=memory.torch_device,
                precision=Precision.BF16,
                context=launch.max_context_tokens,
                position=Position.of(launch),
            )
            model.ranks = ranks
            kernels.wait()
            processes.tell(COMPILED)
            runner, ledger = warm_up(launch, model, memory, ranks.least)
            ready = time.monotonic() - began
            if int(count) > 1:
                orders, launch_here = Orders(), runner.launch

                def launch_everywhere(step: Any) -> Any:
                    processes.tell(orders.encode(step))
                    return launch_here(step)

                runner.launch = launch_everywhere  # type: ignore[method-assign]
            measured = offline.Offline(runner)
            decode = {}
            for batch, context in CASES:
                decode[f"{batch}"] = offline.decode(measured, batch=batch, context=context, tokens=96)
                print(json.dumps(decode), flush=True)
            prompt = offline.prefill(measured, tokens=1000)
            devices = [
                report.bytes.model_dump(by_alias=True) for report in (ledger.report(), *processes.reports())
            ]
            found = {
                "readySeconds": round(ready, 1),
                "decode": decode,
                "prefill": prompt,
                "predicted": launch.predicted.model_dump(by_alias=True),
                "measured": devices,
            }
            ending = time.monotonic()
        found["endSeconds"] = round(time.monotonic() - ending, 1)
    print(json.dumps(found), flush=True)
    os._exit(0)


def ask_share() -> Json:
    with tempfile.TemporaryDirectory() as folder:
        return {str(count): answer_of("share", folder, count) for count in (1, RANKS)}


def run_share(folder: str, count: str) -> None:
    """Decode steps of the first of `count` ranks, where the others' parts of the logits are its own."""
    import torch

    from plimsoll_worker.bench import offline
    from plimsoll_worker.engine.capacity import warm_up
    from plimsoll_worker.kernels.precompile import Precompilation
    from plimsoll_worker.launch import Device, Precision
    from plimsoll_worker.loading.random_weights import RandomCheckpoint
    from plimsoll_worker.loading.weights import load_model
    from plimsoll_worker.memory import open_device
    from plimsoll_worker.parallel.position import Position
    from plimsoll_worker.parallel.ranks import Together, gather

    class Repeating(Together):
        def join_columns(self, x: torch.Tensor, width: int) -> torch.Tensor:
            return torch.cat([super().join_columns(x, x.shape[1])] * int(count), dim=1)[:, :width]

    kernels = Precompilation(Device.GPU)
    launch = launch_for(Path(folder), SHAPE, int(count), context=1024, sequences=128, batched=2048)
    memory = open_device(Device.GPU)
    checkpoint = RandomCheckpoint(Path(folder))
    kernels.want(launch, checkpoint.config)
    model = load_model(
        checkpoint,
        device=memory.torch_device,
        precision=Precision.BF16,
        context=launch.max_context_tokens,
        position=Position.of(launch),
    )
    if int(count) > 1:
        gather(0, 1, memory.torch_device, Path(folder, "meeting"))
        model.ranks = Repeating(0, 1, memory.torch_device)
    kernels.wait()
    runner, ledger = warm_up(launch, model, memory)
    measured = offline.Offline(runner)
    decode = {
        str(batch): offline.decode(measured, batch=batch, context=context, tokens=96)
        for batch, context in CASES
    }
    print(
        json.dumps(
            {
                "decode": decode,
                "predicted": launch.predicted.model_dump(by_alias=True),
                "measured": ledger.report().bytes.model_dump(by_alias=True),
            }
        ),
        flush=True,
    )
    os._exit(0)
