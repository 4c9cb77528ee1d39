"""A GGUF file as a checkpoint: llama.cpp's tensor names and layouts turned into the engine's.

llama.cpp rotates neighbouring elements, so its converter interleaves the rows of q and k; the engine rotates
halves, as transformers does. The permutation is undone here, exactly (rows move, values do not).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from plimsoll_worker.config import ModelConfig, config_from_gguf
from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.loading.gguf_file import GgufFile
from plimsoll_worker.loading.gguf_tokenizer import tokenizer_from_gguf
from plimsoll_worker.loading.tokenizer import Tokenizer

ROPE_FACTORS = "rope_freqs.weight"

OUTER = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_PERMUTED = ("attn_q", "attn_k")


class GgufCheckpoint:
    """One GGUF file, opened."""

    def __init__(self, path: Path) -> None:
        """Raises ModelUnreadable, ModelUnsupported."""
        self.file = GgufFile(path)
        shapes = {tensor.name: tensor.shape for tensor in self.file.tensors.values()}
        factors = None
        if ROPE_FACTORS in shapes:
            factors = tuple(float(factor) for factor in self.file.read(ROPE_FACTORS).float())
        self._config = config_from_gguf(self.file.metadata, shapes, rope_factors=factors, source=str(path))

    @property
    def config(self) -> ModelConfig:
        return self._config

    @cached_property
    def _stored(self) -> dict[str, str]:
        """The engine's name of every tensor → the file's. A tensor without a meaning here is refused."""
        return {
            _engine_name(name, self.file.path): name for name in self.file.tensors if name != ROPE_FACTORS
        }

    def names(self) -> Sequence[str]:
        return tuple(self._stored)

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        tensor = self.file.read(stored)
        layer = _LAYER.fullmatch(stored)
        if layer and layer[2] in _PERMUTED:
            heads = self._config.head_count if layer[2] == "attn_q" else self._config.kv_head_count
            return halves_from_pairs(tensor, heads)
        return tensor

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_gguf(self.file.metadata, self.file.path)


def _engine_name(stored: str, path: Path) -> str:
    outer, _, kind = stored.rpartition(".")
    if outer in OUTER and kind == "weight":
        return f"{OUTER[outer]}.{kind}"
    layer = _LAYER.fullmatch(stored)
    if layer and layer[2] in IN_LAYER:
        return f"layers.{layer[1]}.{IN_LAYER[layer[2]]}.{layer[3]}"
    raise ModelUnsupported(f"{path}: tensor {stored} has no place in a llama decoder as this engine runs it")


def halves_from_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's `LlamaModel.permute` (convert_hf_to_gguf.py): rows of a head from pairs back to
    halves.

    (heads x half x 2, ...) → (heads x 2 x half, ...)
    """
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
