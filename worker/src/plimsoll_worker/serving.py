"""Joins engine, tokenizer, ledger and HTTP server into a service, and ends it when the pod is told to go."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

import torch

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.capacity import Ledger
from plimsoll_worker.engine.engine import Engine, Runner
from plimsoll_worker.engine.guide import Grammars
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.watchdog import Watchdog
from plimsoll_worker.launch import Device, DeviceReport, ExitCode, ExitReason, Launch, LinkReport, Report
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.progress import Startup, say
from plimsoll_worker.server.frontend import Frontend, Service
from plimsoll_worker.server.messages import Limits, Opened
from plimsoll_worker.settings import Settings, termination_log


def reporting(
    launch: Launch,
    runner: ModelRunner,
    ledger: Ledger,
    startup: Startup,
    other_devices: Callable[[], tuple[DeviceReport, ...]],
    link: LinkReport | None,
) -> Callable[[], Report]:
    """Measures anew at every call. `other_devices`: reports of those of the pod's other ranks."""

    def report() -> Report:
        return Report(
            plan_id=launch.plan_id,
            revision=launch.revision,
            device=launch.device,
            architecture=runner.model.config.architecture,
            weights=launch.weights,
            kv_cache=launch.kv_cache,
            tensor_parallel=launch.tensor_parallel,
            pipeline_parallel=launch.pipeline_parallel,
            stage=launch.stage,
            max_context_tokens=launch.max_context_tokens,
            max_batched_tokens=launch.max_batched_tokens,
            kv_cache_tokens=runner.cache.tokens,
            devices=(ledger.report(), *other_devices()),
            startup=startup.times,
            link=link,
            torch_version=torch.__version__,
        )

    return report


def open_service(
    launch: Launch,
    runner: ModelRunner,
    tokenizer: Tokenizer,
    stepped: Callable[[int], None],
    *,
    steps: Runner,
    report: Callable[[], Report],
) -> Service:
    """A service that is ready to run: call `service.engine.run()`. `stepped` hears the tokens of every step.
    `steps`: what launches them, on all devices of the replica."""
    scheduler = Scheduler(
        BlockPool(runner.cache.blocks, runner.cache.block_size),
        max_sequences=launch.max_concurrent_sequences,
        max_batched_tokens=launch.max_batched_tokens,
        stages=launch.pipeline_parallel,
    )
    config = runner.model.config
    eos = frozenset(config.eos_token_ids) | tokenizer.eos_token_ids
    grammars = Grammars(tokenizer, vocabulary=config.vocab_size, eos=eos)
    engine = Engine(steps, scheduler, grammars=grammars, stepped=stepped)
    if launch.device is Device.GPU:
        # Not on a CPU: there a long prompt may rightly take longer than any limit worth having.
        Watchdog(engine.busy_seconds, lambda seconds: end_now(launch, _stuck(seconds))).start()

    # What the start has made stays for good; walking over it at every collection is a pause in every answer.
    gc.collect()
    gc.freeze()
    return Service(
        engine,
        Opened(
            limits=Limits(
                context=launch.max_context_tokens,
                vocabulary=config.vocab_size,
                eos_token_ids=eos,
                sequences=engine.max_live,
            ),
            block_size=runner.cache.block_size,
            blocks=runner.cache.blocks,
        ),
        report,
    )


def _stuck(seconds: float) -> str:
    return f"a step has taken {seconds:.0f} s; the GPU does not answer. Look at the node's kernel log for Xid"


def end_now(launch: Launch, message: str, code: ExitCode = ExitCode.ENGINE_FAILED) -> None:
    """End the process at once, with a reason: nothing of it can be trusted to end by itself."""
    reason = ExitReason(reason=code, message=message, plan_id=launch.plan_id)
    say("Exit", reason=reason.reason, message=message)
    log = termination_log()
    if not (log.exists() and log.read_text(encoding="utf-8")):  # an exception has been told already
        reason.write(log)
    os._exit(1)


def stop_on_sigterm(frontend: Frontend, settings: Settings) -> None:
    """On SIGTERM a serving worker lingers, then drains; one that is still starting has nothing to finish and
    ends at once."""
    linger = min(settings.linger_seconds, settings.drain_seconds)

    def drain(service: Service) -> None:
        frontend.drain()
        service.engine.drain(settings.drain_seconds - linger)
        say("Draining", seconds=settings.drain_seconds - linger, running=service.engine.stats().running)

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the interpreter's signature
        service = frontend.service
        if service is None:
            say("Exit", reason="Completed", message="told to stop before the model was loaded")
            # Not sys.exit: a download's threads would be waited for.
            os._exit(0)
        frontend.leave()
        say("Leaving", seconds=linger)
        timer = threading.Timer(linger, drain, (service,))
        timer.daemon = True  # an engine that fails meanwhile ends the process
        timer.start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
