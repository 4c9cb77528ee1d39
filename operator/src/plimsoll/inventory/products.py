"""GPU products by name: memory and compute capability where no label tells them, and a check where one does.

A fallback: nodes of managed clouds often carry a product name and nothing else. Names are matched token by
token after normalising, never by equality (`Tesla-T4`, `NVIDIA-L4`, `nvidia-tesla-a100`, `h100` are all real
labels) and never by substring (`L4` is in `L40S`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Product:
    """Memory in MiB as NVML tells it, smallest first where one name stands for several sizes."""

    tokens: tuple[str, ...]
    memory_mib: tuple[int, ...]
    compute_capability: tuple[int, int]


def _product(name: str, capability: tuple[int, int], *memory_mib: int) -> Product:
    return Product(tuple(name.split()), memory_mib, capability)


# Memory: "FB Memory Usage, Total" as nvidia-smi prints it for these cards with current drivers (525 and
# later). Check with: nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv. First match wins, so
# longer names stand first.
PRODUCTS = (
    _product("gb300", (10, 3), 275040),
    _product("b300", (10, 3), 275040),
    _product("gb200", (10, 0), 189471),
    _product("b200", (10, 0), 183359),
    _product("gh200", (9, 0), 97871),
    _product("h200", (9, 0), 143771),
    _product("h100 nvl", (9, 0), 95830),
    _product("h100", (9, 0), 81559),
    _product("h800", (9, 0), 81559),
    _product("h20", (9, 0), 97871),
    _product("rtx pro 6000", (12, 0), 97887),
    _product("rtx 5090", (12, 0), 32607),
    _product("rtx 6000 ada", (8, 9), 49140),
    _product("rtx 4090", (8, 9), 24564),
    _product("l40s", (8, 9), 46068),
    _product("l40", (8, 9), 46068),
    _product("l4", (8, 9), 23034),
    _product("rtx a6000", (8, 6), 49140),
    _product("rtx a5000", (8, 6), 24564),
    _product("rtx 3090", (8, 6), 24576),
    _product("a40", (8, 6), 46068),
    _product("a10g", (8, 6), 22731),
    _product("a10", (8, 6), 22731),
    _product("a16", (8, 6), 15356),
    _product("a2", (8, 6), 15356),
    _product("a100 80gb", (8, 0), 81920),
    _product("a100", (8, 0), 40536, 81920),
    _product("a800 80gb", (8, 0), 81920),
    _product("a800", (8, 0), 40536, 81920),
    _product("a30", (8, 0), 24576),
    _product("t4", (7, 5), 15109),
    _product("v100 32gb", (7, 0), 32768),
    _product("v100", (7, 0), 16384, 32768),
    _product("p100", (6, 0), 16280),
    _product("p40", (6, 1), 22919),
    _product("p4", (6, 1), 7611),
)


def tokens(name: str) -> tuple[str, ...]:
    """`NVIDIA-H100-80GB-HBM3` → nvidia, h100, 80gb, hbm3."""
    return tuple(part for part in re.split(r"[^a-z0-9.]+", name.lower()) if part)


def names(wish: str, product: str) -> bool:
    """Whether `wish` names `product`: all its parts stand in the product's name, in the same order.
    `A100-80GB` names `NVIDIA-A100-SXM4-80GB`, `L4` does not name `NVIDIA-L40S`."""
    remaining = iter(tokens(product))
    wanted = tokens(wish)
    return bool(wanted) and all(part in remaining for part in wanted)


def find(product: str) -> Product | None:
    found = tokens(product)
    for entry in PRODUCTS:
        remaining = iter(found)
        if all(part in remaining for part in entry.tokens):
            return entry
    return None
