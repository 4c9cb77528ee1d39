"""The skeleton that all families share: embedding, layers of a mixer, a feed-forward block and norms, last
norm, head.

A family is a row in `families.py` that fills this in; what is peculiar to it is a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plimsoll.model.architectures.attention import heads_of, norm
from plimsoll.model.architectures.vision import PREFIXES
from plimsoll.model.blueprint import Blueprint, FeedForward, Layer, Mixer, Tensor
from plimsoll.model.errors import FileUnreadable
from plimsoll.model.facts import Role
from plimsoll.model.fields import Fields

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPE_KEYS = ("dtype", "torch_dtype")
"""transformers 5 writes `dtype`, earlier ones `torch_dtype`."""

Mixers = Callable[[Fields], Sequence[Mixer]]
FeedForwards = Callable[[Fields], Sequence[FeedForward]]
Tower = Callable[[Fields, int], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """One family."""

    mixers: Mixers
    """The mixer of each layer; layers that are alike share the object."""
    feed_forwards: FeedForwards
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What its configuration class of transformers fills in where config.json is silent."""
    derived: Callable[[Fields], Mapping[str, Any]] | None = None
    """Defaults that follow from other fields."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Fields that the family calls otherwise: our name → its name."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    tied: bool = False
    """Where config.json does not say."""
    stores_tied_head: bool = False
    """Its checkpoints hold the head though it is tied."""
    prefix: str = "model.layers.{}."
    embedding: str = "model.embed_tokens"
    last_norm: str = "model.norm"
    head: str = "lm_head"
    head_bias: bool = False
    layer_extras: Callable[[Fields], tuple[Tensor, ...]] | None = None
    """Tensors that every layer has besides."""
    outer_extras: Callable[[Fields], tuple[Tensor, ...]] | None = None
    prediction: Callable[[Fields, Sequence[Layer]], tuple[Tensor, ...]] | None = None
    """Multi-token-prediction layers."""
    tower: Tower | None = None
    dense_width: str = "intermediate_size"
    """The field of the dense MLP's width; where all layers are sparse, that of an expert."""

    def blueprint(self, architecture: str, f: Fields) -> Blueprint:
        """All tensors by the hyper-parameters. Raises FileUnreadable or ArchitectureUnsupported."""
        f = self._filled(f)
        heads, _ = heads_of(f)
        layers = self._layers(f)
        outer = self._outer(f)
        if self.prediction is not None:
            outer += self.prediction(f, layers)
        vision = f.part("vision_config")
        if vision is not None and self.tower is not None:
            outer += self.tower(vision, f.hidden)
        unsized = {"audio_config"} if f.values.get("audio_config") else set()
        if vision is not None and self.tower is None:
            unsized.add("vision_config")
        return Blueprint(
            architecture=architecture,
            hidden=f.hidden,
            intermediate=f.size(self.dense_width),
            heads=heads,
            vocab=f.size("vocab_size"),
            max_position=f.size("max_position_embeddings"),
            tied=f.flag("tie_word_embeddings", default=self.tied),
            dtype=_dtype(f),
            prefix=self.prefix,
            outer=outer,
            layers=layers,
            open_prefixes=tuple((name, Role.VISION) for name in PREFIXES),
            open_ended=frozenset(unsized),
        )

    def _filled(self, f: Fields) -> Fields:
        values = {**f.values}
        for ours, theirs in self.renamed.items():
            if values.get(ours) is None and values.get(theirs) is not None:
                values[ours] = values[theirs]
        for key, value in self.defaults.items():
            if key not in values:
                values[key] = value
        if self.derived is not None:
            for key, value in self.derived(replace(f, values=values)).items():
                if values.get(key) is None:
                    values[key] = value
        return replace(f, values=values)

    def _layers(self, f: Fields) -> tuple[Layer, ...]:
        mixers, feeds = self.mixers(f), self.feed_forwards(f)
        if not len(mixers) == len(feeds) == f.layers:
            raise FileUnreadable(
                f"{f.name}: {len(mixers)} layers are described, num_hidden_layers is {f.layers}"
            )
        norms: tuple[Tensor, ...] = ()
        for name in self.norms:
            norms += norm(name, f.hidden, bias=self.norm_bias)
        if self.layer_extras is not None:
            norms += self.layer_extras(f)
        made: dict[tuple[int, int], Layer] = {}
        layers = []
        for mixer, feed in zip(mixers, feeds, strict=True):
            key = (id(mixer), id(feed))
            if key not in made:
                made[key] = Layer(mixer, feed, norms)
            layers.append(made[key])
        return tuple(layers)

    def _outer(self, f: Fields) -> tuple[Tensor, ...]:
        shape = (f.size("vocab_size"), f.hidden)
        tied = f.flag("tie_word_embeddings", default=self.tied)
        outer = (
            Tensor(f"{self.embedding}.weight", Role.EMBEDDING, shape),
            *norm(self.last_norm, f.hidden, bias=self.norm_bias),
            Tensor(
                f"{self.head}.weight", Role.HEAD, shape, linear=True,
                required=not tied or self.stores_tied_head,
            ),
        )  # fmt: skip
        return outer + (self.outer_extras(f) if self.outer_extras is not None else ())


def _dtype(f: Fields) -> str | None:
    for key in DTYPE_KEYS:
        value = f.values.get(key)
        if isinstance(value, str):
            return _DTYPES.get(value)
    return None
