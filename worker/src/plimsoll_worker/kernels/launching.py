"""How kernels are launched: programmatic dependent launch, and what of the card decides grids.

On compute capability 9.0 and above a kernel may start while the one before it still runs. It then reads what
that one does not write (weights, block tables) and waits; the gap between two kernels, about as long as a
small layer takes, disappears. Two rules make it right:

- Every kernel here calls `await_inputs` in every program, so a finished kernel means finished predecessors.
- Before `await_inputs` a kernel may read constants and what was written at least two kernels earlier, no
  more; one that calls `release_next` before it must be followed by kernels that read constants only.

CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED_MULTIPROCESSORS = 4
"""What grids are sized for where Triton's interpreter runs them on a CPU."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a launch depends on."""

    multiprocessors: int
    dependent_launch: bool
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability; (0, 0) of an interpreter."""

    @classmethod
    def of(cls, capability: tuple[int, int], multiprocessors: int) -> Card:
        return cls(multiprocessors, dependent_launch=capability >= (9, 0), capability=capability)

    @property
    def compiles(self) -> bool:
        """Whether kernels are compiled, not interpreted."""
        return self.capability != (0, 0)

    @property
    def options(self) -> dict[str, bool]:
        """Keyword arguments of every launch."""
        return {"launch_pdl": True} if self.dependent_launch else {}


recorded_card: Card | None = None
"""What tensors on "meta" belong to (`recording`)."""


def card(device: torch.device) -> Card:
    return (device.type == "meta" and recorded_card) or _card(device)


@functools.cache
def _card(device: torch.device) -> Card:
    if device.type != "cuda":
        return Card(INTERPRETED_MULTIPROCESSORS, dependent_launch=False)
    found = torch.cuda.get_device_properties(device)
    return Card.of((found.major, found.minor), found.multi_processor_count)


@triton.jit
def await_inputs(PDL: tl.constexpr):
    """Return when all kernels before have ended and what they wrote is visible."""
    if PDL:
        gdc_wait()


@triton.jit
def release_next(PDL: tl.constexpr):
    """Let the next kernel start once all programs of this one have come here."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def ask_for(pointers, PDL: tl.constexpr):
    """Have the lines of 128 bytes at `pointers` brought to the L2 cache: constants, before `await_inputs`."""
    if PDL:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [pointers.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
