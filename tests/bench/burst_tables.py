"""The figures of a burst as tables: latencies, and who of the machine's processes took its CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show(console: Console, found: Mapping[str, Any]) -> None:
    title = (
        f"creation to all pods bound, seconds; {found['nodes']} nodes, {found['gpus']} GPUs, "
        f"{found['gpusPromisedTwice']} GPUs promised twice"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("rate", "new", "p50", "p99", "max", "late", "writes"):
        table.add_column(column, justify="right")
    keys = ("rate", "resources", "p50Seconds", "p99Seconds", "maxSeconds", "generatorLateSeconds")
    for row in found["bursts"]:
        table.add_row(*(str(row[key]) for key in (*keys, "writesPerResource")))
    console.print(table)
    console.print("late: of the generator; writes: of the operator, a resource, pods not counted")
    _shares(console, found["bursts"], "cores", "cores kept busy while resources were created")
    _shares(
        console,
        found["bursts"],
        "cpuMillisecondsPerResource",
        "milliseconds of CPU a resource, until all was written; what an idle cluster takes is not in it",
    )
    for row in found["bursts"]:
        console.print(
            f"at {row['rate']}/s: with these milliseconds {os.cpu_count()} processors do "
            f"{row['mostPerSecond']} a second, and {row['mostPerSecondOfOthers']} if the operator took none"
        )
    empty, again = found["residentMiBEmpty"], found["kill"]
    grown = (again["residentMiB"] - empty) * 1000 / again["resources"]
    console.print(
        f"memory of the operator: {empty} MiB with three resources, {found['residentMiB']} after the bursts, "
        f"{again['residentMiB']} when started with {again['resources']}: {grown:.0f} for 1,000"
    )
    for key in ("nodeLoss", "kill", "start"):
        if key in found:
            console.print(f"{key}: {found[key]}")


def _shares(console: Console, bursts: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("rate", *bursts[0][key]):
        table.add_column(column, justify="right")
    for row in bursts:
        table.add_row(str(row["rate"]), *map(str, row[key].values()))
    console.print(table)
