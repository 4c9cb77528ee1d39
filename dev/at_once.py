"""`python -m dev.at_once PART...`: parts of the tests at once, each in a process with clusters of its own.

Tests on a cluster mostly wait: for kubelets, for back-offs, for somebody who must not do anything. One after
the other they take as long as all those waits together. A part is what follows `pytest` on a command line, in
one argument; each line that it says is shown behind its number. Every part runs to its end, whatever becomes
of the others, and one that fails makes the whole fail.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

Running = list[subprocess.Popen[str]]


def run(parts: Sequence[str], options: Sequence[str]) -> bool:
    """Whether all of them passed."""
    running: Running = []
    with _ended_together(running):
        running += [
            subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *options, *shlex.split(part)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # Ctrl-C reaches this process alone: two signals would interrupt the end of their clusters.
                start_new_session=True,
            )
            for part in parts
        ]
        tellers = [
            threading.Thread(target=_tell, args=(number, process))
            for number, process in enumerate(running, start=1)
        ]
        for teller in tellers:
            teller.start()
        for teller in tellers:
            teller.join()
    return all(process.returncode == 0 for process in running)


def _tell(number: int, process: subprocess.Popen[str]) -> None:
    """Line by line: half a line of one part and half of another would be no line."""
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(f"{number}| {line}")
        sys.stdout.flush()
    process.wait()


@contextlib.contextmanager
def _ended_together(running: Running) -> Iterator[None]:
    """Whoever ends this ends the parts too, and each of them its clusters."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m dev.at_once", description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART", help="what follows `pytest`, in one argument")
    parser.add_argument(
        "-m", dest="marks", default="", help="only tests with these marks, as pytest takes them"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often; the first that fails is the last")
    options = parser.parse_args()
    marks = ["-m", options.marks] if options.marks else []
    for number in range(1, options.rounds + 1):
        started = time.monotonic()
        passed = run(options.parts, marks)
        took = time.monotonic() - started
        print(
            f"round {number} of {options.rounds}: {'green' if passed else 'RED'} after {took:.0f} s",
            flush=True,
        )
        if not passed:
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
