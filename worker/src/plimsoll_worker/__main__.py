"""A worker's life: launch → fetch → load → warm up → check → serve → drain. Whatever ends it early names
its reason."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

# Process 1 of a container ignores signals it has no handler for (pid_namespaces(7)): a pod deleted while
# torch is imported would hold its GPU until SIGKILL. So the first handler comes before the imports.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

from plimsoll_worker import environment  # noqa: E402
from plimsoll_worker.errors import WorkerError, exit_reason  # noqa: E402
from plimsoll_worker.kernels.precompile import Precompilation  # noqa: E402
from plimsoll_worker.launch import Device, ExitCode, Launch, LaunchError, StartupStage  # noqa: E402
from plimsoll_worker.progress import Startup, say  # noqa: E402
from plimsoll_worker.settings import Settings, termination_log  # noqa: E402


def main() -> int:
    """Run one worker. Returns the process's exit code."""
    launch: Launch | None = None
    try:
        launch = Launch.from_env()
        # On a GPU the threads of the host compile and load; on a CPU they are what the ranks compute with.
        environment.prepare(launch.tensor_parallel if launch.device is Device.CPU else 1)
        run(launch, Settings.from_env())
    except Exception as error:  # noqa: BLE001 - the last line of defence: every end has a reason
        reason = exit_reason(error, launch)
        if not isinstance(error, (WorkerError, LaunchError)):
            traceback.print_exc()
        say("Exit", reason=reason.reason, message=reason.message)
        reason.write(termination_log())
        return 1
    say("Exit", reason="Completed")
    return 0


def run(launch: Launch, settings: Settings) -> None:
    """Serve the launch until told to stop. Raises WorkerError and LaunchError."""
    # torch and friends come after the environment they read at import.
    kernels = Precompilation(launch.device)
    from plimsoll_worker.engine.capacity import warm_up
    from plimsoll_worker.loading.checkpoint import open_checkpoint
    from plimsoll_worker.loading.weights import load_model
    from plimsoll_worker.memory import open_device
    from plimsoll_worker.parallel.position import Position
    from plimsoll_worker.parallel.rank_processes import COMPILED, RankProcesses
    from plimsoll_worker.parallel.stage import Stage
    from plimsoll_worker.quant.stored import staying
    from plimsoll_worker.selfcheck import check_effective, check_plan
    from plimsoll_worker.server.frontend import Frontend
    from plimsoll_worker.serving import end_now, open_service, reporting, stop_on_sigterm

    startup = Startup()

    def died(message: str) -> None:
        end_now(launch, message)

    def lost(message: str) -> None:
        end_now(launch, message, ExitCode.PEER_LOST)

    with RankProcesses(launch, died) as ranks, Frontend(launch, settings, startup, died) as frontend:
        stop_on_sigterm(frontend, settings)
        say("Starting", plan=launch.plan_id, model=launch.model_path, ports=frontend.ports)
        stage = Stage(launch, lost)
        folder = Path(launch.model_path)
        if launch.hub is not None:
            from plimsoll_worker.loading.hub import fetch

            fetch(launch.hub, folder)
        startup.reached(StartupStage.FETCHED)

        checkpoint = open_checkpoint(folder, settings.load_format)
        tokenizer = checkpoint.tokenizer()
        frontend.speak(tokenizer)
        memory = open_device(launch.device, ranks=ranks.pids)
        as_stored = launch.weights.checkpoint is not None
        stored = staying(checkpoint.stored, as_stored=as_stored)
        check_plan(
            launch,
            checkpoint.config,
            memory.product,
            checkpoint=stored.format if stored else "",
            capability=memory.capability,
        )
        kernels.want(launch, checkpoint.config, stored.forms.values() if stored else ())
        together = ranks.gather(memory)
        model = load_model(
            checkpoint,
            device=memory.torch_device,
            precision=launch.weights.computed_in,
            matrices=launch.weights.name,
            as_stored=as_stored,
            context=launch.max_context_tokens,
            position=Position.of(launch),
            progress=startup.loaded,
        )
        model.ranks = together
        startup.reached(StartupStage.WEIGHTS_LOADED, bytes=model.weight_bytes)

        kernels.wait()
        ranks.tell(COMPILED)
        runner, ledger = warm_up(
            launch,
            model,
            memory,
            lambda number: together.least(stage.least(together.least(number))),
        )
        startup.reached(StartupStage.WARMED_UP, kv_tokens=runner.cache.tokens, activations=ledger.activations)

        check_effective(launch, model, runner.cache)
        startup.reached(StartupStage.READY, used=ledger.report().used_bytes, line=launch.line)
        report = reporting(launch, runner, ledger, startup, ranks.reports, stage.link)
        if launch.stage > 0:
            frontend.stand(report)
            stage.follow(runner, ranks.tell)
        else:
            steps = stage.steps(runner, ranks.tell)
            service = open_service(launch, runner, tokenizer, frontend.stepped, steps=steps, report=report)
            frontend.open(service)
            service.engine.run()
        stage.close()


if __name__ == "__main__":
    sys.exit(main())
