"""What a model is made of, by its hyper-parameters: the tensors of every layer, what each does, and what a
layer caches.

Layers that are alike are one object, and the experts of a layer are one `Tensor` with a count: a model of
60,000 tensors is a few dozen objects, which is what makes a closed form cheap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from plimsoll.model.facts import Role

EXPERT = "{e}"
"""Stands in a tensor's name for the number of an expert."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor that a checkpoint has or may have; with `copies`, one for each expert."""

    name: str
    """Under the prefix of its layer; in full for outer tensors."""
    role: Role
    shape: tuple[int, ...]
    copies: int = 1
    linear: bool = False
    """A matrix of a linear layer: the ones that quantizers pack."""
    required: bool = True
    kept: bool = True
    """False: stored by some converters, computed by the engine (rotary frequencies)."""
    counted: bool = True
    """False: a buffer of the model, not a parameter (the routers' correction bias)."""
    dtype: str = ""
    """Stored type where it is not that of the checkpoint."""
    key_value_rows: int = 0
    """Of a fused projection: the rows that belong to keys and values."""

    @property
    def elements(self) -> int:
        """Of one copy."""
        return math.prod(self.shape)

    def parts(self) -> tuple[tuple[Role, int], ...]:
        """(role, elements) of one copy; two where keys and values are fused with the queries."""
        if not self.key_value_rows:
            return ((self.role, self.elements),)
        shared = self.elements // self.shape[0] * self.key_value_rows
        return ((self.role, self.elements - shared), (Role.ATTENTION_KV, shared))


@dataclass(frozen=True, slots=True)
class Mixer:
    """The part of a layer that looks at other tokens: its tensors and what it caches."""

    tensors: tuple[Tensor, ...] = ()
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int | None = None
    index_bytes: int = 0
    states: tuple[tuple[int, str], ...] = ()
    """(elements, type) of each recurrent state of a sequence; type empty: that of the activations."""
    divisors: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The part of a layer that looks at one token."""

    tensors: tuple[Tensor, ...] = ()
    divisors: tuple[tuple[str, int], ...] = ()
    active_width: int = 0
    """Intermediate elements that one token passes in experts."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Everything in one layer."""

    mixer: Mixer
    feed_forward: FeedForward
    norms: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.mixer.tensors + self.feed_forward.tensors + self.norms


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A whole model."""

    architecture: str
    hidden: int
    intermediate: int
    heads: int
    vocab: int
    max_position: int
    tied: bool
    dtype: str | None
    """The stored element type when the file names one (BF16)."""
    prefix: str
    """Of layer 0's tensors, `{}` for the number of the layer."""
    outer: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    quantization: Mapping[str, object] | None = None
    """`quantization_config` of config.json as it stands there."""
    open_prefixes: tuple[tuple[str, Role], ...] = ()
    """Tensors under these names are taken as they come: towers whose shapes are not followed."""
    open_ended: frozenset[str] = field(default_factory=frozenset)
    """Parts that a config.json alone does not size."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding window of each layer; None: full attention, or none at all."""
        return tuple(layer.mixer.window for layer in self.layers)
