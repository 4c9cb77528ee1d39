"""How fast a GPU is, by its product's name: what its datasheet says, for predictions before anything was
measured.

Bytes a second and operations a second are not in any label, and a worker can only be timed once it runs. What
is not in the table has no prediction; guessing by compute capability was rejected, because the cards of one
generation differ by a factor of four and more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plimsoll.inventory.products import tokens
from plimsoll_worker.launch import Precision

GIGA, TERA = 10**9, 10**12
GIB = 1 << 30
MIG = "mig"
"""In the name of a slice: it has a part of the card's speed that no datasheet tells."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU of a kind, and its link to the others of its node."""

    memory_bandwidth: int
    """Bytes a second."""
    operations: Mapping[Precision, int]
    """Operations (a multiply-add is two) a second of dense matrix products."""
    link_bandwidth: int
    """Bytes a second, one direction, to the other GPUs of a node."""
    nvlink: bool

    def rate(self, precision: Precision) -> int:
        """Operations a second; what the GPU has no units for is computed in FP32."""
        return self.operations.get(precision, self.operations[Precision.FP32])


@dataclass(frozen=True, slots=True)
class _Sheet:
    name: tuple[str, ...]
    hardware: Hardware
    least_memory: int
    """Bytes. One name may stand for two sizes with different memory."""


def _sheet(
    name: str,
    bandwidth: int,
    *,
    fp32: float,
    fp16: float = 0,
    bf16: float = 0,
    fp8: float = 0,
    nvlink: int = 0,
    pcie: int = 32,
    least_gib: int = 0,
) -> _Sheet:
    """`bandwidth`, `nvlink` and `pcie` in GB/s (links: one direction), the rest in TFLOP/s."""
    rates = {Precision.FP32: fp32, Precision.FP16: fp16, Precision.BF16: bf16, Precision.FP8: fp8}
    hardware = Hardware(
        memory_bandwidth=bandwidth * GIGA,
        operations={kind: int(rate * TERA) for kind, rate in rates.items() if rate},
        link_bandwidth=(nvlink or pcie) * GIGA,
        nvlink=bool(nvlink),
    )
    return _Sheet(tokens(name), hardware, least_gib * GIB)


# NVIDIA's datasheets and architecture white papers: dense rates (those with sparsity halved), accumulation in
# FP32, PCIe by generation. First match wins, so longer names stand first.
_SHEETS = (
    _sheet("gb300", 8000, fp32=80, fp16=2500, bf16=2500, fp8=5000, nvlink=900),
    _sheet("b300", 8000, fp32=75, fp16=2250, bf16=2250, fp8=4500, nvlink=900),
    _sheet("gb200", 8000, fp32=80, fp16=2500, bf16=2500, fp8=5000, nvlink=900),
    _sheet("b200", 8000, fp32=75, fp16=2250, bf16=2250, fp8=4500, nvlink=900),
    _sheet("gh200", 4000, fp32=67, fp16=989, bf16=989, fp8=1979, nvlink=450),
    _sheet("h200 nvl", 4800, fp32=60, fp16=835, bf16=835, fp8=1671, nvlink=450),
    _sheet("h200", 4800, fp32=67, fp16=989, bf16=989, fp8=1979, nvlink=450),
    _sheet("h100 nvl", 3900, fp32=60, fp16=835, bf16=835, fp8=1671, nvlink=300),
    _sheet("h100 pcie", 2000, fp32=51, fp16=756, bf16=756, fp8=1513, pcie=64),
    _sheet("h100", 3350, fp32=67, fp16=989, bf16=989, fp8=1979, nvlink=450),
    _sheet("h800", 3350, fp32=67, fp16=989, bf16=989, fp8=1979, nvlink=200),
    _sheet("h20", 4000, fp32=44, fp16=148, bf16=148, fp8=296, nvlink=450),
    _sheet("rtx pro 6000", 1597, fp32=120, fp16=500, bf16=500, fp8=1000, pcie=64),
    _sheet("rtx 5090", 1792, fp32=104.8, fp16=209.5, bf16=209.5, fp8=419, pcie=64),
    _sheet("rtx 6000 ada", 960, fp32=91.1, fp16=364, bf16=364, fp8=728),
    _sheet("rtx 4090", 1008, fp32=82.6, fp16=165, bf16=165, fp8=330),
    _sheet("l40s", 864, fp32=91.6, fp16=362, bf16=362, fp8=733),
    _sheet("l40", 864, fp32=90.5, fp16=181, bf16=181, fp8=362),
    _sheet("l4", 300, fp32=30.3, fp16=121, bf16=121, fp8=242),
    _sheet("rtx a6000", 768, fp32=38.7, fp16=154.8, bf16=154.8),
    _sheet("rtx a5000", 768, fp32=27.8, fp16=111, bf16=111),
    _sheet("rtx 3090", 936, fp32=35.6, fp16=71, bf16=71),
    _sheet("a40", 696, fp32=37.4, fp16=149.7, bf16=149.7),
    _sheet("a10g", 600, fp32=35, fp16=70, bf16=70),
    _sheet("a10", 600, fp32=31.2, fp16=125, bf16=125),
    _sheet("a16", 200, fp32=4.5, fp16=17.9, bf16=17.9),
    _sheet("a2", 200, fp32=4.5, fp16=18, bf16=18),
    _sheet("a100 pcie", 1935, fp32=19.5, fp16=312, bf16=312, least_gib=60),
    _sheet("a100 pcie", 1555, fp32=19.5, fp16=312, bf16=312),
    _sheet("a100", 2039, fp32=19.5, fp16=312, bf16=312, nvlink=300, least_gib=60),
    _sheet("a100", 1555, fp32=19.5, fp16=312, bf16=312, nvlink=300),
    _sheet("a800", 2039, fp32=19.5, fp16=312, bf16=312, nvlink=200, least_gib=60),
    _sheet("a800", 1555, fp32=19.5, fp16=312, bf16=312, nvlink=200),
    _sheet("a30", 933, fp32=10.3, fp16=165, bf16=165),
    _sheet("t4", 320, fp32=8.1, fp16=65, pcie=16),
    _sheet("v100 pcie", 900, fp32=14, fp16=112, pcie=16),
    _sheet("v100", 900, fp32=15.7, fp16=125, nvlink=150),
    _sheet("p100", 732, fp32=9.3, fp16=18.7, pcie=16),
    _sheet("p40", 346, fp32=11.8, pcie=16),
    _sheet("p4", 192, fp32=5.5, pcie=16),
)


def hardware(product: str, memory_bytes: int = 0) -> Hardware | None:
    """The GPU that `product` names (`NVIDIA-H100-80GB-HBM3`, `nvidia-tesla-a100`), None where it is not in
    the table or a MIG slice. `memory_bytes` tells two cards of one name apart; without it the smaller is
    taken, which is the slower."""
    found = tokens(product)
    if MIG in found:
        return None
    for sheet in _SHEETS:
        remaining = iter(found)
        if all(part in remaining for part in sheet.name) and memory_bytes >= sheet.least_memory:
            return sheet.hardware
    return None
