"""Numbers as people read them in conditions, events and tables."""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.inventory.capacity import CPU, EPHEMERAL, MEMORY, Shortage

MIB, GIB = 1 << 20, 1 << 30
MAX_DECIMALS = 6


def size(amount: int, decimals: int = 1) -> str:
    """Bytes as GiB, below one GiB as MiB."""
    if abs(amount) >= GIB:
        return f"{amount / GIB:.{decimals}f} GiB"
    return f"{amount / MIB:.{0 if decimals == 1 else decimals}f} MiB"


def sizes(needed: int, there: int) -> tuple[str, str]:
    """Two amounts with as many decimals as it takes to tell them apart: "needs 21.8 GiB, has 21.8 GiB"
    explains nothing."""
    for decimals in range(1, MAX_DECIMALS):
        left, right = size(needed, decimals), size(there, decimals)
        if left != right or needed == there:
            return left, right
    return f"{needed} bytes", f"{there} bytes"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str], most: int = 3, total: int | None = None) -> str:
    """The first names, and how many more there are of `total` (None: of those given)."""
    shown, more = ", ".join(names[:most]), (len(names) if total is None else total) - most
    return shown if more <= 0 else f"{shown} and {more} more"


def shortage(lack: Shortage) -> str:
    """What a node lacks, in the resource's own unit."""
    if lack.resource in (MEMORY, EPHEMERAL):
        needed, there = sizes(lack.needed, max(0, lack.available))
        return f"{lack.resource} {needed}, {there} free"
    if lack.resource == CPU:
        return f"cpu {lack.needed / 1000:g}, {max(0, lack.available) / 1000:g} free"
    return f"{lack.resource} {lack.needed}, {max(0, lack.available)} free"
