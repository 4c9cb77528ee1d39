"""All measurements of the planner: `python -m tests.bench [--openb FOLDER] [--seeds N] [--json FILE]`; of the
operator on a real control plane: `python -m tests.bench burst [--json FILE]`.

Prints a table a benchmark and, with --json, writes all figures. The packing replay needs the openb files,
which are not part of this project (`tests/bench/openb.py` says where they are); without them it is left out
and said so. Speed is measured first, in a process of its own, so that nothing else is in its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Figures = Mapping[str, Any]


def main() -> None:
    if sys.argv[1:2] == ["burst"]:
        _burst(sys.argv[2:])
    else:
        _planner(sys.argv[1:])


def _planner(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    openb = os.environ.get("OPENB")
    parser.add_argument("--openb", type=Path, default=openb and Path(openb), help="folder of the openb trace")
    parser.add_argument("--seeds", type=int, default=6, help="instances of each size for optimality")
    parser.add_argument("--packing-seeds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args(argv)
    console = Console(highlight=False, width=120)
    figures = _begin(console)
    figures["speed"] = _apart("speed")
    _speed(console, figures["speed"])
    figures["optimality"] = _apart("optimality", str(given.seeds))
    _optimality(console, figures["optimality"])
    if given.openb:
        seeds = str(given.packing_seeds)
        figures["packing"] = _apart("packing", str(given.openb), seeds, seeds)
        _packing(console, figures["packing"])
    else:
        console.print(
            "packing: left out, no --openb FOLDER (or OPENB); tests/bench/openb.py says where to get it"
        )
    _keep(figures, given.json)


def _burst(argv: list[str]) -> None:
    # It needs a cluster and its client; the planner's benchmarks need neither.
    from tests.bench import burst, burst_tables

    parser = burst.parser()
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args(argv)
    console = Console(highlight=False, width=120)
    figures = _begin(console)
    figures["burst"] = burst.measure(
        burst.asked(given), lambda line: print(line, file=sys.stderr, flush=True)
    )
    burst_tables.show(console, figures["burst"])
    _keep(figures, given.json)


def _begin(console: Console) -> dict[str, Any]:
    figures = {"machine": machine(), "command": " ".join(["python -m tests.bench", *sys.argv[1:]])}
    console.print(f"{figures['command']}\n{figures['machine']}")
    return figures


def _keep(figures: Figures, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{os.cpu_count()} CPUs ({cpu}), load before {load}; Python {platform.python_version()}, "
        f"SciPy {version('scipy')} (HiGHS), {platform.system()} {platform.release()}"
    )


def _apart(name: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", f"tests.bench.{name}", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _table(console: Console, title: str, *columns: str) -> Callable[..., None]:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")

    def add(*cells: object, last: bool = False) -> None:
        table.add_row(*map(str, cells))
        if last:
            console.print(table)

    return add


def _speed(console: Console, found: Figures) -> None:
    title = f"speed, milliseconds (wall / process time), peak memory {found['peakMemoryMiB']} MiB"
    add = _table(console, title, "nodes", "running", "one new, median", "p99", "one rejected, p99", "all new")
    for row in found["rows"]:
        new, rejected, burst = row["oneNew"], row["oneRejected"], row["allNew"]
        add(
            row["nodes"],
            row["runningDeployments"],
            _both(new, "Median"),
            _both(new, "P99"),
            _both(rejected, "P99"),
            _both(burst, "Median"),
            last=row is found["rows"][-1],
        )

    for mixed in found["mixedModels"]:
        told = f"{mixed['newDeployments']} new of many models on {mixed['nodes']} nodes of many kinds"
        console.print(f"{told}: {_both(mixed, 'Median')}")


def _both(taken: Mapping[str, float], which: str) -> str:
    return f"{taken[f'wall{which}Milliseconds']} / {taken[f'process{which}Milliseconds']}"


def _optimality(console: Console, found: Figures) -> None:
    _distance(console, "optimality", found)
    _distance(console, "optimality, stages in one domain", found["withDomains"])


def _distance(console: Console, what: str, found: Figures) -> None:
    free, tight = found["uncontended"], found["contended"]
    title = f"{what}, {found['instances']} instances, {found['proven']} optima proven"
    add = _table(console, title, "", "instances", "mean", "median", "least", "most")
    above, share = free["costAboveOptimumPercent"], tight["weightPercentOfOptimum"]
    add("cost above optimum, %, uncontended", free["instances"], *above.values())
    add("admitted weight, % of optimum, contended", tight["instances"], *share.values(), last=True)


def _packing(console: Console, found: Figures) -> None:
    columns = ("trace", "pods", "policy", "100 %", "130 %", "published")
    add = _table(console, "GPUs unallocated, percent, mean of seeds, by share arrived", *columns)
    for row in found["rows"]:
        published = " / ".join(map(str, row["publishedPercent"] or ())) or "-"
        add(
            row["trace"],
            row["pods"],
            row["policy"],
            *row["unallocatedPercent"],
            published,
            last=row is found["rows"][-1],
        )


if __name__ == "__main__":
    main()
