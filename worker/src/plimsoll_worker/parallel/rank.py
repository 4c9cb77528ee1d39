"""A further rank of a pod, which mirrors the first one until that ends.

    python -m plimsoll_worker.parallel.rank RANK MEETING ORDERS QUESTIONS

The first one starts it and knows what the words mean (`parallel.rank_processes`).
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from plimsoll_worker.engine.capacity import Ledger, warm_up
from plimsoll_worker.errors import WorkerError, exit_reason
from plimsoll_worker.launch import Launch
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.memory import open_device
from plimsoll_worker.parallel.mirror import Mirror
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.parallel.rank_processes import COMPILED, END, GATHER, HERE, connections
from plimsoll_worker.parallel.ranks import gather
from plimsoll_worker.progress import say
from plimsoll_worker.selfcheck import check_effective
from plimsoll_worker.settings import Settings, termination_log

PR_SET_PDEATHSIG = 1
"""prctl(2)"""


def main() -> int:
    """Run one rank. Returns the process's exit code."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    rank, meeting, *descriptors = sys.argv[1:]
    launch = Launch.from_env()
    orders, questions = connections(*descriptors)
    try:
        _run(launch, Settings.from_env(), int(rank), Path(meeting), orders, questions)
    except EOFError:  # the first rank is gone, and has said why
        return 1
    except Exception as error:  # noqa: BLE001 - the last line of defence: every end has a reason
        reason = exit_reason(error, launch)
        reason = reason.model_copy(update={"message": f"rank {rank}: {reason.message}"})
        if not isinstance(error, WorkerError):
            traceback.print_exc()
        say("Exit", rank=rank, reason=reason.reason, message=reason.message)
        if not _told():
            reason.write(termination_log())
        return 1
    return 0


def _run(
    launch: Launch, settings: Settings, rank: int, meeting: Path, orders: Connection, questions: Connection
) -> None:
    memory = open_device(launch.device, rank)
    orders.send_bytes(HERE)
    _expect(orders, GATHER)
    position = Position.of(launch, rank)
    ranks = memory.communicating(lambda: gather(rank, position.ranks, memory.torch_device, meeting))
    model = load_model(
        open_checkpoint(Path(launch.model_path), settings.load_format),
        device=memory.torch_device,
        precision=launch.weights.computed_in,
        matrices=launch.weights.name,
        as_stored=launch.weights.checkpoint is not None,
        context=launch.max_context_tokens,
        position=position,
    )
    model.ranks = ranks
    _expect(orders, COMPILED)
    # Twice: the first rank asks the other stages in between.
    runner, ledger = warm_up(launch, model, memory, lambda number: ranks.least(ranks.least(number)))
    check_effective(launch, model, runner.cache)
    threading.Thread(target=_answer, args=(questions, ledger), name="questions", daemon=True).start()
    gc.collect()
    gc.freeze()  # as in `serving.open_service`
    mirror = Mirror()
    while (message := orders.recv_bytes()) != END:
        runner.launch(mirror.apply(message))


def _expect(orders: Connection, wanted: bytes) -> None:
    found = orders.recv_bytes()
    if found == END:
        raise EOFError
    assert found == wanted, f"the first rank says {found[:32]!r}, expected {wanted!r}"


def _answer(questions: Connection, ledger: Ledger) -> None:
    """Tell of the device whenever the first rank asks."""
    try:
        while questions.recv_bytes():
            questions.send_bytes(ledger.report().to_json().encode())
    except (EOFError, OSError):
        os._exit(1)  # the first rank is gone


def _told() -> bool:
    log = termination_log()
    return log.exists() and bool(log.read_text(encoding="utf-8"))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: communicators that recorded graphs still refer to would be waited for.
    os._exit(code)
