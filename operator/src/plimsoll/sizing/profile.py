"""What a worker measured for one configuration, in place of the constants that no closed form gives.

Only these four categories: weights and cache have closed forms that a measurement must confirm, not replace,
and activations follow a workload that may differ from the measured one. Which configuration a profile
belongs to is its owner's matter; sizing takes the bytes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """Bytes on the fullest rank, as its ledger found them."""

    runtime: int
    """Context, libraries and workspaces."""
    communication: int
    cuda_graphs: int
    fragmentation: int

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 0:
                raise ValueError(f"profile: {name} is {size} bytes, expected 0 or more")
