"""The numbers that decide a decoder's tensor shapes, whichever file they came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HyperParameters:
    """Hyper-parameters of one model. Widths are elements, positions are tokens."""

    architecture: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    vocab: int
    max_position: int
    tied: bool
    windows: tuple[int | None, ...]
    """Sliding window of each layer; None: full attention."""
    dtype: str | None = None
    """The stored element type when the file names one (BF16), for checkpoints known by config.json alone."""
    attention_bias: bool = False
    mlp_bias: bool = False
