"""Where one process stands in a replica: which layers it has, and which share of each.

    stage    a range of layers, one pod        the first has the embedding, the last the norm and the head
    rank     one device of a stage's pod       heads, widths of MLPs and the vocabulary are divided by ranks

A share is a `ModelConfig` of its own, smaller in heads and widths, so layers and KV cache are made for a rank
as they are made for a whole model (the cut of Shoeybi et al. 2019, arXiv:1909.08053: columns first, rows
after, one sum behind attention and one behind the MLP).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.launch import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The place of one process among those that serve a replica."""

    first: int
    """Of its layers."""
    last: int
    """Behind its layers."""
    stage: int = 0
    stages: int = 1
    rank: int = 0
    ranks: int = 1

    @classmethod
    def whole(cls, config: ModelConfig) -> Position:
        """Of a process that has all to itself."""
        return cls(first=0, last=config.layer_count)

    @classmethod
    def of(cls, launch: Launch, rank: int = 0) -> Position:
        """Of a rank of the launch's stage."""
        return cls(
            first=launch.layers.first,
            last=launch.layers.last,
            stage=launch.stage,
            stages=launch.pipeline_parallel,
            rank=rank,
            ranks=launch.tensor_parallel,
        )

    @property
    def is_first(self) -> bool:
        """Whether its stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether its stage has norm and head, and chooses tokens."""
        return self.stage == self.stages - 1

    @property
    def leads(self) -> bool:
        """Whether it has engine, scheduler and server; all others do as it says."""
        return self.is_first and self.rank == 0

    @property
    def alone(self) -> bool:
        return self.stages == self.ranks == 1

    def share(self, config: ModelConfig) -> ModelConfig:
        """What this process has of the model: its layers, and its part of heads and widths. The vocabulary
        stays whole, `vocabulary_rows` tells the part."""
        experts = config.experts
        return replace(
            config,
            layers=config.layers[self.first : self.last],
            head_count=config.head_count // self.ranks,
            kv_head_count=max(1, config.kv_head_count // self.ranks),
            intermediate_size=config.intermediate_size // self.ranks,
            experts=experts and replace(experts, width=experts.width // self.ranks),
        )

    def kv_heads(self, config: ModelConfig) -> tuple[int, int]:
        """First and last (exclusive) of the model's KV heads that this rank has. With more ranks than KV
        heads neighbours have the same one."""
        first = self.rank * config.kv_head_count // self.ranks
        return first, first + max(1, config.kv_head_count // self.ranks)

    def vocabulary_rows(self, config: ModelConfig) -> int:
        """Rows of embedding and head on each rank; the last may have rows of no token."""
        return -(-config.vocab_size // self.ranks)

    def vocabulary(self, config: ModelConfig) -> tuple[int, int]:
        """First and last (exclusive) of the tokens whose rows this rank has."""
        rows = self.vocabulary_rows(config)
        return min(self.rank * rows, config.vocab_size), min((self.rank + 1) * rows, config.vocab_size)


def check_divides(config: ModelConfig, ranks: int) -> None:
    """Raise ModelUnsupported unless the model can be divided by `ranks`: the rule by which plans are made
    (plimsoll/sizing/parallel.py)."""
    widths = {"attention heads": config.head_count}
    if any(not (layer.sparse and config.experts) for layer in config.layers):
        widths["columns of the MLP"] = config.intermediate_size
    if config.experts:
        widths["columns of an expert"] = config.experts.width
    for what, count in widths.items():
        if count % ranks:
            raise ModelUnsupported(f"{count} {what} do not divide by tensor parallel {ranks}")
    if config.kv_head_count % ranks and ranks % config.kv_head_count:
        raise ModelUnsupported(
            f"{config.kv_head_count} KV heads neither divide by tensor parallel {ranks} nor divide it"
        )
