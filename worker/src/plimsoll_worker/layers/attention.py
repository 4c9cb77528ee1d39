"""Causal grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over the paged KV cache."""

from __future__ import annotations

import torch
from torch import nn

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.kernels import ops
from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.layers.linear import Linear
from plimsoll_worker.layers.rmsnorm import RMSNorm


class Attention(nn.Module):
    """One layer's attention. Queries, keys and values come from one matrix, in this order."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.head_count
        self.kv_heads = config.kv_head_count
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.softcap = config.attention_softcap
        self.window = config.layers[layer].window
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_offset)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_offset)
        self.qk_norm = config.qk_norm

    def forward(
        self,
        x: torch.Tensor,
        norm: RMSNorm,
        cos_sin: torch.Tensor,
        batch: AttentionBatch,
        cache: KVCache,
    ) -> torch.Tensor:
        """What the norm of x (tokens, hidden) attends to, before the output projection → (tokens, heads *
        head_dim). The tokens' keys and values are written to the cache."""
        return ops.rope_attention(
            self.qkv_proj.after(norm, x),
            batch,
            cos_sin,
            cache.keys[self.layer],
            cache.values[self.layer],
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            scale=self.scale,
            q_norm=self.q_norm.weight if self.qk_norm else None,
            k_norm=self.k_norm.weight if self.qk_norm else None,
            eps=norm.eps,
            norm_offset=norm.offset,
            window=self.window,
            softcap=self.softcap,
        )
