"""What is asked (a workload), how it is run (a configuration), and one line of the answer (a term)."""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.sizing.kv_cache import BLOCK_TOKENS
from plimsoll.sizing.schemes import QuantizationScheme, Quantized, Stored
from plimsoll_worker.launch import Device, MemoryCategory, Precision


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What must fit at the same time."""

    max_context_tokens: int
    """Longest sequence, prompt and answer together."""
    max_sequences: int
    """Sequences in flight."""
    max_batched_tokens: int
    """Most tokens of one forward pass: the prefill chunk."""
    kv_tokens: int | None = None
    """Tokens the KV pool holds over all sequences; None: every sequence at full length."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How the engine runs the model."""

    device: Device
    weights: Precision
    kv_cache: Precision
    """What keys and values are kept in."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    stored: bool = False
    """Weights stay as a quantized checkpoint holds them; `weights` is then the precision of everything
    else."""
    scheme: QuantizationScheme | None = None
    """What matrices are quantized to while they are loaded; `weights` is then the precision of everything
    else."""
    kv_block_tokens: int = BLOCK_TOKENS
    bounded_windows: bool = False
    """Whether the engine drops keys and values that have left a sliding window. Engine 0.3.0 masks and keeps
    them."""

    @property
    def kept(self) -> Precision | Quantized | Stored:
        """What weights are kept in."""
        if self.scheme is not None:
            return Quantized(self.scheme, self.weights)
        return Stored(self.weights) if self.stored else self.weights


@dataclass(frozen=True)
class Term:
    """One summand of a category, as a person would check it."""

    category: MemoryCategory
    formula: str
    """With the numbers put in."""
    bytes: int
