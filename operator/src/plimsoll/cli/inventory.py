"""`plimsoll inventory`: the GPUs of a cluster, which of them can be used, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from plimsoll.cli.live import Cluster, ContextOption
from plimsoll.cli.manifests import Objects, read_objects
from plimsoll.cli.output import BadInputError, Format, OutputOption, gib, write
from plimsoll.inventory.capacity import free_by_node
from plimsoll.inventory.gpu_class import Allocation, GPUClass

FilesOption = Annotated[
    list[Path],
    typer.Option(
        "--file",
        "-f",
        help="Saved nodes, pods, ResourceSlices and ResourceClaims; default: the live cluster.",
    ),
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
    rows = list(_rows(objects))
    if output is Format.TABLE:
        _print(rows)
    else:
        write([_entry(row) for row in rows], output)


@dataclass(frozen=True, slots=True)
class _Row:
    """One kind of GPU of a node."""

    node: str
    gpu: GPUClass
    free: int


def _rows(objects: Objects) -> Iterator[_Row]:
    """By node name."""
    nodes = sorted(objects.nodes(), key=lambda node: node.name)
    free = free_by_node(nodes, objects.pods())
    for node in nodes:
        for gpu in node.gpus:
            yield _Row(node.name, gpu, max(0, free[node.name].extended.get(gpu.resource_name, 0)))


def _entry(row: _Row) -> dict[str, Any]:
    gpu = row.gpu
    return {
        "node": row.node,
        "vendor": gpu.vendor,
        "product": gpu.product,
        "memoryBytes": gpu.memory_bytes,
        "computeCapability": _capability(gpu) or None,
        "total": gpu.total,
        "free": row.free,
        "sharing": gpu.sharing.value,
        "usable": gpu.usable,
        "reason": gpu.reason,
    }


def _capability(gpu: GPUClass) -> str:
    return ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else ""


def _print(rows: Sequence[_Row]) -> None:
    console = Console(highlight=False)
    if not rows:
        console.print("no node has a GPU")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("NODE", "PRODUCT", "MEMORY", "CC", "FREE", "SHARING", "FROM", "USABLE"):
        table.add_column(
            name, no_wrap=name != "PRODUCT", justify="right" if name in ("MEMORY", "FREE") else "left"
        )
    for row in rows:
        gpu = row.gpu
        table.add_row(
            row.node,
            gpu.product or f"({gpu.vendor})",
            gib(gpu.memory_bytes) if gpu.memory_bytes else "?",
            _capability(gpu) or "?",
            f"{row.free} of {gpu.total}",
            gpu.sharing.value,
            gpu.resource_name if gpu.allocation is Allocation.DEVICE_PLUGIN else "DRA",
            "yes" if gpu.usable else "no",
        )
    console.print(table)
    for row in rows:
        if row.gpu.reason:
            console.print(f"{row.node}: {row.gpu.reason}", soft_wrap=True)
