"""The llama decoder, with flags for its kin (mistral): one class, because they differ by a bias and a mask.

Touvron et al. 2023 (arXiv:2302.13971), Jiang et al. 2023 (arXiv:2310.06825). Parameter names are those of
transformers' checkpoints without the prefix `model.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.layers.attention import Span, paged_attention
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.layers.linear import Embedding, Linear
from plimsoll_worker.layers.rmsnorm import RMSNorm
from plimsoll_worker.layers.rotary import Rotary, rotate


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass: new tokens of several sequences, one after another."""

    token_ids: torch.Tensor
    """(tokens)"""
    positions: torch.Tensor
    """(tokens), 0 for a sequence's first."""
    slots: torch.Tensor
    """(tokens), where each token's key and value go in the cache."""
    spans: tuple[Span, ...]
    """One per sequence."""
    logits_rows: torch.Tensor
    """Rows of the batch whose logits are wanted."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query_width = config.head_count * config.head_dim
        kv_width = config.kv_head_count * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_width, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(query_width, config.hidden_size, bias=config.output_bias)

    def forward(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], batch: Batch, cache: KVCache
    ) -> torch.Tensor:
        """(tokens, hidden) → (tokens, hidden)."""
        heads = (x.shape[0], -1, self.head_dim)
        queries = rotate(self.q_proj(x).view(heads), *angles)
        keys = rotate(self.k_proj(x).view(heads), *angles)
        cache.write(self.layer, batch.slots, keys, self.v_proj(x).view(heads))
        attended = paged_attention(queries, cache, self.layer, batch.spans)
        out: torch.Tensor = self.o_proj(attended.flatten(1))
        return out


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) → (tokens, hidden)."""
        out: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], batch: Batch, cache: KVCache
    ) -> torch.Tensor:
        """(tokens, hidden) → (tokens, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), angles, batch, cache)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LlamaModel(nn.Module):
    """Token ids to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.layer_count))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        # A tied head is the embedding itself, kept once.
        self.lm_head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def forward(self, batch: Batch, cache: KVCache, *, layers: int | None = None) -> torch.Tensor:
        """Logits of `batch.logits_rows`, (rows, vocabulary) in FP32. `layers`: only so many, to measure
        what one takes."""
        x: torch.Tensor = self.embed_tokens(batch.token_ids)
        angles = self.rotary.angles(batch.positions, x.dtype)
        for layer in self.layers[:layers]:
            x = layer(x, angles, batch, cache)
        x = self.norm(x.index_select(0, batch.logits_rows))
        head = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return functional.linear(x, head).float()
