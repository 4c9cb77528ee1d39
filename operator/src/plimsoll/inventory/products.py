"""GPU products by name: memory and compute capability where no label tells them, and a check where one does.

A fallback: nodes of managed clouds often carry a product name and nothing else. Names are matched token by
token after normalising, never by equality (`Tesla-T4`, `NVIDIA-L4`, `nvidia-tesla-a100`, `h100` are all real
labels) and never by substring (`L4` is in `L40S`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Size:
    """A card that a product name can stand for: memory as NVML tells it, and the driver's name for it."""

    mib: int
    name: str


@dataclass(frozen=True, slots=True)
class Product:
    """`sizes`: smallest first where one name stands for several cards."""

    tokens: tuple[str, ...]
    compute_capability: tuple[int, int]
    sizes: tuple[Size, ...]

    @property
    def memory_mib(self) -> tuple[int, ...]:
        return tuple(size.mib for size in self.sizes)

    def name(self, mib: int) -> str:
        """The driver's name, as feature discovery writes it, of the card whose memory is nearest."""
        return min(self.sizes, key=lambda size: abs(size.mib - mib)).name


def _product(name: str, capability: tuple[int, int], *sizes: tuple[int, str]) -> Product:
    return Product(tuple(name.split()), capability, tuple(Size(mib, card) for mib, card in sizes))


_A100, _A800, _V100 = "NVIDIA-A100-SXM4", "NVIDIA-A800-SXM4", "Tesla-V100-SXM2"

# Memory: "FB Memory Usage, Total" as nvidia-smi prints it for these cards with current drivers (525 and
# later). Check with: nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv. First match wins, so
# longer names stand first. The last name is the driver's for the card that clouds rent under the short one.
PRODUCTS = (
    _product("gb300", (10, 3), (275040, "NVIDIA-GB300")),
    _product("b300", (10, 3), (275040, "NVIDIA-B300")),
    _product("gb200", (10, 0), (189471, "NVIDIA-GB200")),
    _product("b200", (10, 0), (183359, "NVIDIA-B200")),
    _product("gh200", (9, 0), (97871, "NVIDIA-GH200-480GB")),
    _product("h200 nvl", (9, 0), (143771, "NVIDIA-H200-NVL")),
    _product("h200", (9, 0), (143771, "NVIDIA-H200")),
    _product("h100 nvl", (9, 0), (95830, "NVIDIA-H100-NVL")),
    _product("h100 pcie", (9, 0), (81559, "NVIDIA-H100-PCIe")),
    _product("h100", (9, 0), (81559, "NVIDIA-H100-80GB-HBM3")),
    _product("h800", (9, 0), (81559, "NVIDIA-H800")),
    _product("h20", (9, 0), (97871, "NVIDIA-H20")),
    _product("rtx pro 6000", (12, 0), (97887, "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition")),
    _product("rtx 5090", (12, 0), (32607, "NVIDIA-GeForce-RTX-5090")),
    _product("rtx 6000 ada", (8, 9), (49140, "NVIDIA-RTX-6000-Ada-Generation")),
    _product("rtx 4090", (8, 9), (24564, "NVIDIA-GeForce-RTX-4090")),
    _product("l40s", (8, 9), (46068, "NVIDIA-L40S")),
    _product("l40", (8, 9), (46068, "NVIDIA-L40")),
    _product("l4", (8, 9), (23034, "NVIDIA-L4")),
    _product("rtx a6000", (8, 6), (49140, "NVIDIA-RTX-A6000")),
    _product("rtx a5000", (8, 6), (24564, "NVIDIA-RTX-A5000")),
    _product("rtx 3090", (8, 6), (24576, "NVIDIA-GeForce-RTX-3090")),
    _product("a40", (8, 6), (46068, "NVIDIA-A40")),
    _product("a10g", (8, 6), (22731, "NVIDIA-A10G")),
    _product("a10", (8, 6), (22731, "NVIDIA-A10")),
    _product("a16", (8, 6), (15356, "NVIDIA-A16")),
    _product("a2", (8, 6), (15356, "NVIDIA-A2")),
    _product("a100 80gb pcie", (8, 0), (81920, "NVIDIA-A100-80GB-PCIe")),
    _product("a100 80gb", (8, 0), (81920, f"{_A100}-80GB")),
    _product("a100", (8, 0), (40536, f"{_A100}-40GB"), (81920, f"{_A100}-80GB")),
    _product("a800 80gb", (8, 0), (81920, f"{_A800}-80GB")),
    _product("a800", (8, 0), (40536, f"{_A800}-40GB"), (81920, f"{_A800}-80GB")),
    _product("a30", (8, 0), (24576, "NVIDIA-A30")),
    _product("t4g", (7, 5), (15109, "NVIDIA-T4G")),
    _product("t4", (7, 5), (15109, "Tesla-T4")),
    _product("v100 32gb", (7, 0), (32768, f"{_V100}-32GB")),
    _product("v100", (7, 0), (16384, f"{_V100}-16GB"), (32768, f"{_V100}-32GB")),
    _product("p100", (6, 0), (16280, "Tesla-P100-PCIE-16GB")),
    _product("p40", (6, 1), (22919, "Tesla-P40")),
    _product("p4", (6, 1), (7611, "Tesla-P4")),
)

# GPUs of other vendors, GiB as their makers tell it; only to be listed. Longer names stand first.
_OTHERS = (
    ("mi355x", 288),
    ("mi350x", 288),
    ("mi325x", 256),
    ("mi308x", 192),
    ("mi300x", 192),
    ("mi300a", 128),
    ("mi250x", 128),
    ("mi250", 128),
    ("mi210", 64),
    ("mi100", 32),
    ("radeon pro v520", 8),
    ("max 1550", 128),
    ("max 1100", 48),
    ("flex 170", 16),
    ("flex 140", 6),
    ("gaudi3", 128),
    ("gaudi2", 96),
)


def tokens(name: str) -> tuple[str, ...]:
    """`NVIDIA-H100-80GB-HBM3` → nvidia, h100, 80gb, hbm3."""
    return tuple(part for part in re.split(r"[^a-z0-9.]+", name.lower()) if part)


def names(wish: str, product: str) -> bool:
    """Whether `wish` names `product`: all its parts stand in the product's name, in the same order.
    `A100-80GB` names `NVIDIA-A100-SXM4-80GB`, `L4` does not name `NVIDIA-L40S`."""
    wanted = tokens(wish)
    return bool(wanted) and _within(wanted, tokens(product))


def _within(wanted: tuple[str, ...], found: tuple[str, ...]) -> bool:
    remaining = iter(found)
    return all(part in remaining for part in wanted)


def find(product: str) -> Product | None:
    found = tokens(product)
    return next((entry for entry in PRODUCTS if _within(entry.tokens, found)), None)


def memory_of_others(product: str) -> int:
    """Bytes of a GPU of another vendor; 0 when it is not in the table."""
    found = tokens(product)
    return next((gib * GIB for name, gib in _OTHERS if _within(tokens(name), found)), 0)
