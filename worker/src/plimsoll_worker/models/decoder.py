"""The decoder: one class for all families, which differ by flags of `ModelConfig` (`models/families.py`).

A class per family was the alternative; ten files would repeat the same five calls a layer, and each fused
kernel would have to be brought to all of them. Parameter names are those of transformers' checkpoints without
the prefix `model.`, but that q, k, v and gate, up are one matrix each (`loading/placement.py`).
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.kernels import ops
from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.layers.attention import Attention
from plimsoll_worker.layers.experts import SparseMLP
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.layers.linear import Embedding, Linear
from plimsoll_worker.layers.mlp import MLP
from plimsoll_worker.layers.rmsnorm import RMSNorm
from plimsoll_worker.layers.rotary import Rotary
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.parallel.ranks import Alone, Ranks


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual; with a norm before the sum too in
    Gemma."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.sandwich = config.sandwich_norms
        self.residual_scale = config.residual_scale
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = _norm(config)
        if config.sandwich_norms:
            self.pre_feedforward_layernorm = _norm(config)
            self.post_feedforward_layernorm = _norm(config)
        sparse = config.layers[layer].sparse and config.experts
        self.mlp = SparseMLP(config, sparse) if sparse else MLP(config)

    def forward(
        self,
        x: torch.Tensor,
        cos_sin: torch.Tensor,
        batch: AttentionBatch,
        cache: KVCache,
        ranks: Ranks,
    ) -> torch.Tensor:
        """(tokens, hidden) → (tokens, hidden), whole on every rank. x is used up."""
        attended = self.self_attn(x, self.input_layernorm, cos_sin, batch, cache)
        output, mlp, scale = self.self_attn.o_proj, self.mlp, self.residual_scale
        if self.sandwich:
            x = x + self.post_attention_layernorm(ranks.sum(output(attended)))
            added = ranks.sum(mlp(x, self.pre_feedforward_layernorm))
            out: torch.Tensor = x + self.post_feedforward_layernorm(added)
            return out
        norm = self.post_attention_layernorm
        if ranks.leads:  # the sum takes the residual along: no pass of its own
            x = ranks.sum(output.add_to(x, attended, scale))
            return ranks.sum(mlp.add_to(x, norm, scale))
        x = ranks.sum(_scaled(output(attended), scale))
        return ranks.sum(_scaled(mlp(x, norm), scale))


class Decoder(nn.Module):
    """Token ids to hidden states to logits, or what one process of a replica does of that."""

    def __init__(self, config: ModelConfig, position: Position | None = None) -> None:
        """`position` None: all of it."""
        super().__init__()
        self.config = config
        self.position = position = position or Position.whole(config)
        self.share = share = position.share(config)
        """What this process has of the model."""
        vocabulary, hidden = position.vocabulary_rows(config), config.hidden_size
        if position.is_first or (position.is_last and config.tied):
            self.embed_tokens = Embedding(vocabulary, hidden)
        # By their numbers in the whole model, as checkpoints name them.
        self.layers = nn.ModuleDict(
            {str(position.first + layer): DecoderLayer(share, layer) for layer in range(share.layer_count)}
        )
        self.lm_head: Linear | None = None
        if position.is_last:
            self.norm = _norm(config)
            if not config.tied:  # else it is the embedding itself, kept once
                self.lm_head = Linear(hidden, vocabulary, bias=False, sensitive=True)
        if position.rank > 0:
            self._leave_out_biases_of_sums()
        self.ranks: Ranks = Alone()
        """Among which the layers are divided; to be set where there are several."""
        self._rotaries: list[Rotary] = []
        self._rope_of_layer = [share.ropes.index(layer.rope) for layer in share.layers]
        self._embedding_scale = 1.0

    def make_ready(self, context: int) -> None:
        """Compute what follows from the configuration; call once, when the weights are in place. `context`:
        the longest sequence that will be served, tokens."""
        self._rotaries = [Rotary(rope, context, self.device) for rope in self.share.ropes]
        self._embedding_scale = torch.tensor(self.config.embedding_scale, dtype=self.dtype).item()

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return self._any_norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self._any_norm.weight.device

    @property
    def _any_norm(self) -> RMSNorm:
        """Every stage has a layer, and norms are in the type of the computation."""
        layer = next(iter(self.layers.values()))
        assert isinstance(layer, DecoderLayer)
        return layer.input_layernorm

    def forward(
        self, inputs: torch.Tensor, batch: AttentionBatch, cache: KVCache, *, layers: int | None = None
    ) -> torch.Tensor:
        """Token ids (tokens) on the first stage, hidden states (tokens, hidden) of the stage before on the
        others → hidden states (tokens, hidden), for the next stage or for `logits`. Reads nothing back from
        the device. `layers`: only so many, to measure what one takes."""
        x = self._embed(inputs) if self.position.is_first else inputs
        cos_sin = [rotary.cos_sin(batch.positions) for rotary in self._rotaries]
        for layer, rope in islice(zip(self.layers.values(), self._rope_of_layer, strict=True), layers):
            x = layer(x, cos_sin[rope], batch, cache, self.ranks)
        return x

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self.position.ranks == 1:
            return _scaled(self.embed_tokens(token_ids), self._embedding_scale)
        first, last = self.position.vocabulary(self.config)
        mine = (token_ids >= first) & (token_ids < last)
        x = self.embed_tokens((token_ids - first).clamp(0, self.position.vocabulary_rows(self.config) - 1))
        return _scaled(self.ranks.sum(x.masked_fill(~mine[:, None], 0)), self._embedding_scale)

    def _leave_out_biases_of_sums(self) -> None:
        """Each is added once, by the first rank."""
        for name, module in self.named_modules():
            if isinstance(module, Linear) and name.endswith(("o_proj", "down_proj")):
                module.bias = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """On the last stage: hidden states (rows, hidden) → logits (rows, vocabulary); in FP32 where they are
        soft-capped, else in the model's type."""
        head = self.embed_tokens.weight if self.lm_head is None else self.lm_head.matrix
        found = ops.norm_linear(hidden, self.norm.weight, self.norm.eps, head, offset=self.norm.offset)
        found = _scaled(self.ranks.join_columns(found, self.config.vocab_size), self.config.logits_scale)
        cap = self.config.logits_softcap
        return found if cap is None else cap * torch.tanh(found.float() / cap)


def _scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x if factor == 1.0 else x * factor


def _norm(config: ModelConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)
