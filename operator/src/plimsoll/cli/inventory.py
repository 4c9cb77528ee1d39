"""`plimsoll inventory`: the GPUs of a cluster, which of them can be used, and why the others cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from plimsoll.cli.live import Cluster, ContextOption
from plimsoll.cli.manifests import Objects, read_objects
from plimsoll.cli.output import BadInputError, Format, OutputOption, gib, write
from plimsoll.inventory.capacity import free_by_node
from plimsoll.inventory.labels import GPUClass, gpu_classes

FilesOption = Annotated[
    list[Path],
    typer.Option("--file", "-f", help="Saved nodes and pods (YAML or JSON); default: the live cluster."),
]


def command(
    files: FilesOption = [],  # noqa: B006  Typer reads the default and never changes it
    context: ContextOption = "",
    output: OutputOption = Format.TABLE,
) -> None:
    """List the GPUs of every node: kind, memory, free count, and whether they can be used."""
    objects = read_objects(files) if files else Cluster(context).objects()
    if files and not objects.of("Node"):
        raise BadInputError(f"{', '.join(map(str, files))}: no objects of kind Node")
    entries = document(objects)
    if output is Format.TABLE:
        _print(entries)
    else:
        write(entries, output)


def document(objects: Objects) -> list[dict[str, Any]]:
    """One entry per GPU class of a node, by node name."""
    nodes = sorted(objects.nodes(), key=lambda node: node.name)
    free = free_by_node(nodes, objects.pods())
    return [
        _entry(node.name, gpu, max(0, free[node.name].extended.get(gpu.resource_name, 0)))
        for node in nodes
        for gpu in gpu_classes(node)
    ]


def _entry(node: str, gpu: GPUClass, free: int) -> dict[str, Any]:
    capability = gpu.compute_capability
    return {
        "node": node,
        "vendor": gpu.vendor,
        "product": gpu.product,
        "memoryBytes": gpu.memory_bytes,
        "computeCapability": f"{capability[0]}.{capability[1]}" if capability else None,
        "total": gpu.total,
        "free": free,
        "sharing": gpu.sharing.value,
        "usable": gpu.usable,
        "reason": gpu.reason,
    }


def _print(entries: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    if not entries:
        console.print("no node has a GPU")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("NODE", "PRODUCT", "MEMORY", "CC", "FREE", "SHARING", "USABLE"):
        table.add_column(
            name, no_wrap=name != "PRODUCT", justify="right" if name in ("MEMORY", "FREE") else "left"
        )
    for entry in entries:
        table.add_row(
            entry["node"],
            entry["product"] or f"({entry['vendor']})",
            gib(entry["memoryBytes"]) if entry["memoryBytes"] else "?",
            entry["computeCapability"] or "?",
            f"{entry['free']} of {entry['total']}",
            entry["sharing"],
            "yes" if entry["usable"] else "no",
        )
    console.print(table)
    for entry in entries:
        if entry["reason"]:
            console.print(f"{entry['node']}: {entry['reason']}", soft_wrap=True)
