"""The other ranks of a pod, as its first one knows them: a process for each further device.

The first rank is the pod: its exit code, its signals, its server. The others are its children. One that ends
by itself ends the pod with a reason; when the first ends, however it does, the kernel ends the others
(`parallel.rank`). Threads of one process were the alternative; Python's lock would have them launch in turn.

    here        rank → first    libraries are loaded, the device is there
    GATHER      first → rank    the model is in its folder and is the planned one: meet, and load
    COMPILED    first → rank    kernels are in the cache: warm up
    step        first → rank    as `parallel.mirror` writes it, again and again
    END         first → rank
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from plimsoll_worker.errors import EngineFailed, RendezvousFailed
from plimsoll_worker.launch import DeviceReport, Launch
from plimsoll_worker.progress import say

if TYPE_CHECKING:
    from plimsoll_worker.memory import DeviceMemory
    from plimsoll_worker.parallel.ranks import Ranks

HERE, GATHER, COMPILED, END, REPORT = b"here", b"gather", b"compiled", b"end", b"report"
COME_SECONDS = 120
"""From its start until a rank has loaded its libraries and found its device, beside others on a slow disk."""
REPORT_SECONDS = 5
REASON_SECONDS = 1
"""Two ranks that break together end together."""
FAREWELL_SECONDS = 10


class RankProcesses:
    """All ranks of the launch's stage but the first, as a context. With one rank there is nobody."""

    def __init__(self, launch: Launch, died: Callable[[str], None]) -> None:
        """`died` is called, in a thread, with how a rank ended by itself; its own reason is in the
        termination message by then."""
        self._count = launch.tensor_parallel
        self._died = died
        self._ranks: list[_RankProcess] = []
        self._closing = False
        self._folder = tempfile.TemporaryDirectory(prefix="plimsoll-")
        self._meeting = Path(self._folder.name, "meeting")
        self._asking = threading.Lock()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for rank in range(1, self._count):
            self._ranks.append(_RankProcess(rank, self._meeting, self._ended))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # What broke here may only be that another rank has ended: then that one's reason counts.
            for rank in self._ranks:
                rank.wait_for_end(REASON_SECONDS)
        self._closing = True
        for rank in self._ranks:
            rank.end(kindly=error is None)
        self._folder.cleanup()

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(rank.pid for rank in self._ranks)

    def gather(self, memory: DeviceMemory, *, seconds: float = COME_SECONDS) -> Ranks:
        """Wait for all, and meet. Raises RendezvousFailed for a rank that does not come."""
        from plimsoll_worker.parallel.ranks import Alone, gather

        if not self._ranks:
            return Alone()
        for rank in self._ranks:
            rank.wait_until_here(self._began + seconds - time.monotonic())
        self.tell(GATHER)
        return memory.communicating(lambda: gather(0, self._count, memory.torch_device, self._meeting))

    def tell(self, message: bytes) -> None:
        """To every rank."""
        for rank in self._ranks:
            rank.tell(message)

    def reports(self) -> tuple[DeviceReport, ...]:
        """Of every rank's device, measured anew; who does not answer is left out."""
        with self._asking:
            found = [rank.report() for rank in self._ranks]
        return tuple(report for report in found if report is not None)

    def _ended(self, rank: int, how: str) -> None:
        if not self._closing:
            self._died(f"rank {rank} of tensor parallel {self._count} {how}; what it said last is in the log")


class Questions:
    """What a rank is asked about its device. One that did not answer in time still owes the answer: it is not
    asked and waited for again before that has come, and the answer, by then an old one, is not taken."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._owed = False

    def report(self) -> DeviceReport | None:
        """None where none comes in time, or the rank has ended."""
        try:
            if self._owed:
                if not self._pipe.poll():
                    return None
                self._pipe.recv_bytes()
            self._pipe.send_bytes(REPORT)
            self._owed = not self._pipe.poll(REPORT_SECONDS)
            return None if self._owed else DeviceReport.model_validate_json(self._pipe.recv_bytes())
        except (OSError, EOFError):
            return None


class _RankProcess:
    """One of them."""

    def __init__(self, rank: int, meeting: Path, ended: Callable[[int, str], None]) -> None:
        self._rank = rank
        self._ended = ended
        self._orders, orders = Pipe()
        asking, questions = Pipe()
        self._questions = Questions(asking)
        passed = (orders.fileno(), questions.fileno())
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "plimsoll_worker.parallel.rank",
                str(rank),
                str(meeting),
                *map(str, passed),
            ],
            pass_fds=passed,
            start_new_session=True,  # what a terminal tells the first rank is not meant for this one
        )
        orders.close()
        questions.close()
        self._watching = threading.Thread(target=self._watch, name=f"rank {rank}", daemon=True)
        self._watching.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_here(self, seconds: float) -> None:
        if not self._orders.poll(max(0.0, seconds)):
            raise RendezvousFailed(
                f"rank {self._rank} has not come within {COME_SECONDS} s of its start; what it said last is "
                "in the log"
            )
        try:
            self._orders.recv_bytes()
        except EOFError as error:
            self._lost(error)

    def tell(self, message: bytes) -> None:
        try:
            self._orders.send_bytes(message)
        except OSError as error:
            self._lost(error)

    def report(self) -> DeviceReport | None:
        return self._questions.report()

    def wait_for_end(self, seconds: float) -> None:
        """Up to so long, or for good where the thread that says how ends this process."""
        try:
            self._process.wait(seconds)
            self._watching.join()
        except subprocess.TimeoutExpired:
            return

    def end(self, *, kindly: bool) -> None:
        """Ask it to, and see to it; unkindly where it may wait for what will never come."""
        if kindly:
            try:
                self._orders.send_bytes(END)
                self._process.wait(FAREWELL_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                say("NotEnded", rank=self._rank, after_seconds=FAREWELL_SECONDS)
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._ended(self._rank, how)

    def _lost(self, error: Exception) -> None:
        """Its pipe is closed, so it ends: the thread that waits for that says how, and ends this one."""
        self._process.wait(FAREWELL_SECONDS)
        raise EngineFailed(f"rank {self._rank} has ended") from error


def connections(orders: str, questions: str) -> tuple[Connection, Connection]:
    """A rank's own ends, by the file descriptors it was started with."""
    return Connection(int(orders)), Connection(int(questions))
