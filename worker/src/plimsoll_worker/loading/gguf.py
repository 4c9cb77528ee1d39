"""A GGUF file as a checkpoint: llama.cpp's tensor names and layouts turned into the engine's.

For llama and its kin llama.cpp rotates neighbouring elements, so its converter interleaves the rows of q and
k; the engine rotates halves, as transformers does. The permutation is undone, exactly (rows move, values do
not).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from plimsoll_worker.config import ModelConfig
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.launch import GGUF_BLOCKS
from plimsoll_worker.loading.checkpoint import Part
from plimsoll_worker.loading.config_gguf import config_from_gguf
from plimsoll_worker.loading.gguf_file import GgufFile
from plimsoll_worker.loading.gguf_matrices import NUMBERS_AT_ONCE, GgufMatrices, halves_from_pairs
from plimsoll_worker.loading.gguf_tokenizer import tokenizer_from_gguf
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.models.families import FAMILIES

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

OUTER = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
SANDWICHED = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
STACKED = {
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_PERMUTED = ("attn_q", "attn_k")
_KEPT = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Matrices that may stay in the file's blocks."""


class GgufCheckpoint:
    """One GGUF file, opened."""

    def __init__(self, path: Path) -> None:
        """Raises ModelUnreadable, ModelUnsupported."""
        self.file = GgufFile(path)
        shapes = {tensor.name: tensor.shape for tensor in self.file.tensors.values()}
        factors = {
            name: tuple(self.file.read(name).float().tolist()) for name in ROPE_FACTORS if name in shapes
        }
        self._config = config_from_gguf(self.file.metadata, shapes, rope_factors=factors, source=str(path))
        self._family = FAMILIES[self._config.architecture]

    @property
    def config(self) -> ModelConfig:
        return self._config

    @cached_property
    def _stored(self) -> dict[str, str]:
        """The engine's name of every tensor → the file's. A tensor without a meaning here is refused."""
        return {self._engine_name(name): name for name in self.file.tensors if name not in ROPE_FACTORS}

    def names(self) -> Sequence[str]:
        return tuple(self._stored)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self.file.tensors[self._stored[name]].shape)

    def read(self, name: str, target: torch.Tensor, part: Part | None = None) -> None:
        """A few rows at a time: dequantised a whole embedding takes gigabytes."""
        stored, part = self._stored[name], part or Part()
        shape = self.file.tensors[stored].shape
        if len(shape) > 2:
            experts = range(shape[0]) if part.expert is None else [part.expert]
            for place, expert in zip(target.view(-1, *target.shape[-2:]), experts, strict=True):
                matrix = self.file.read(stored, (expert, expert + 1))[0]
                place.copy_(Part(rows=part.rows, columns=part.columns).of(matrix))
            return
        height = self._config.head_dim if self._is_paired(stored) else 1
        first, last = part.rows or (0, shape[0])
        step = max(1, NUMBERS_AT_ONCE // math.prod(shape[1:]) // height) * height
        for start in range(first, last, step):
            end = min(start + step, last)
            rows = self.file.read(stored, (start, end))
            if height > 1:
                rows = halves_from_pairs(rows, (end - start) // height)
            if stored.endswith("norm.weight"):
                # llama.cpp's converter adds Gemma's 1 to the weights themselves.
                rows = rows - self._config.norm_offset
            target[start - first : end - first].copy_(Part(columns=part.columns).of(rows))

    @cached_property
    def stored(self) -> GgufMatrices | None:
        kept = {
            name: self.file.tensors[stored]
            for name, stored in self._stored.items()
            if (layer := _LAYER.fullmatch(stored))
            and layer[2] in _KEPT
            and self.file.tensors[stored].type in GGUF_BLOCKS
        }
        if not kept:
            return None
        paired = {name: self._config.head_dim for name in kept if self._is_paired(self._stored[name])}
        return GgufMatrices(self.file, kept, paired)

    def _is_paired(self, stored: str) -> bool:
        """Whether llama.cpp's converter has interleaved the rows of its heads."""
        layer = _LAYER.fullmatch(stored)
        return bool(layer and layer[2] in _PERMUTED and self._family.interleaved_pairs)

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_gguf(self.file.metadata, self.file.path)

    def _engine_name(self, stored: str) -> str:
        outer, _, kind = stored.rpartition(".")
        if outer in OUTER and kind == "weight":
            return f"{OUTER[outer]}.{kind}"
        layer = _LAYER.fullmatch(stored)
        if layer:
            number, part, kind = layer.groups()
            if part in STACKED:
                return f"layers.{number}.{STACKED[part]}"
            if part == "ffn_up" and self._family.stacked_projections:
                return f"layers.{number}.mlp.gate_up_proj.{kind}"
            names = {**IN_LAYER, **SANDWICHED} if self._config.sandwich_norms else IN_LAYER
            if part in names:
                return f"layers.{number}.{names[part]}.{kind}"
        raise ModelUnsupported(
            f"{self.file.path}: tensor {stored} has no place in a {self._config.architecture} decoder as "
            "this engine runs it"
        )
